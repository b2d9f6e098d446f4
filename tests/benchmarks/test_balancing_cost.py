"""The benchmark of balancing runs every strategy on the same network and images."""

import argparse
import sys

import pytest

from polyscene.downstream.multitask.balancing.build import BALANCERS


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("balancing_cost")


def test_every_strategy_is_measured(benchmark, capsys):
    options = argparse.Namespace(
        arch="resnet10t", size=(32, 64), batch_size=2, pyramid_width=8, rounds=2, threads=1, seed=0, device="cpu"
    )
    found = benchmark.measure(options)
    assert {strategy for strategy, _ in benchmark.STRATEGIES.values()} == set(BALANCERS)
    assert list(found) == list(benchmark.STRATEGIES)
    assert found["fixed"]["ratio"] == 1
    assert found["fixed"]["weights"] == [1, 1, 1, 1]
    for each in found.values():
        assert each["seconds"] > 0
        assert len(each["ratio_of_rounds"]) == 2
    for name in ("GradNorm", "MGDA", "MGDA (all layers)"):
        assert sum(found[name]["weights"]) == pytest.approx(4, rel=1e-4)
        assert found[name]["weights"] != [1, 1, 1, 1]
    benchmark.print_table(found)
    assert "MGDA (all layers)" in capsys.readouterr().out


def test_numbers_out_of_range_are_one_line(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["balancing_cost.py", "--rounds", "0"])
    with pytest.raises(SystemExit, match="--rounds must be at least 1"):
        benchmark.main()
