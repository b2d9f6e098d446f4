"""The benchmark of the losses' memory compares ways that compute the same, and tells them apart."""

import argparse

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("memory")


@pytest.fixture
def setting(benchmark):
    return benchmark.Setting("cpu", threads=torch.get_num_threads(), seed=0, precision="fp32", chunk_bytes=100_000)


def test_ways_agree_and_another_loss_is_noticed(benchmark, setting, monkeypatch):
    case = benchmark.Case(8, 2000, 24)
    differences = benchmark.agreement(case, setting)
    assert list(differences) == ["instance", "neighbour", "gradient", "neighbours"]
    assert max(differences.values()) < benchmark.TOLERANCE
    original = benchmark.reference
    monkeypatch.setattr(benchmark, "reference", lambda *a, **b: original(*a[:3], 0.21, **b))
    with pytest.raises(SystemExit, match="losses, 8 images, K 2000, C 24: reference and ours do not compute the same"):
        benchmark.measure(case, setting, argparse.Namespace(rounds=1, seconds=1))


def test_a_step_takes_the_losses_of_the_way(benchmark, setting, monkeypatch):
    used = []
    original, ours = benchmark.reference, benchmark.contrastive_losses
    monkeypatch.setattr(benchmark, "reference", lambda *a, **b: used.append("reference") or original(*a, **b))
    monkeypatch.setattr(benchmark, "contrastive_losses", lambda *a, **b: used.append("ours") or ours(*a, **b))
    run = benchmark.prepared(benchmark.Case(4, 64, 512, "resnet10t", (32, 32)), setting)
    run("reference")
    run("ours")
    assert used == ["reference", "ours"]


def test_rounds_take_turns_and_end_in_time(benchmark, setting, monkeypatch):
    order = []
    monkeypatch.setattr(benchmark, "prepared", lambda case, setting: order.append)
    case = benchmark.Case(1, 64, 4, arch="none")
    found = benchmark.timings(case, ["reference", "ours"], setting, argparse.Namespace(rounds=3, seconds=60))
    assert order == ["reference", "ours", "ours", "reference", "reference", "ours", "ours", "reference"]
    assert [len(pairs) for pairs in found.values()] == [3, 3]
    found = benchmark.timings(case, ["ours"], setting, argparse.Namespace(rounds=9, seconds=0))
    assert {way: len(pairs) for way, pairs in found.items()} == {"ours": benchmark.LEAST_ROUNDS}


def test_ratio_is_that_of_rounds(benchmark):
    times = {"reference": [2.0, 9.0, 4.0], "ours": [1.0, 3.0, 4.0]}
    assert benchmark.ratio(times) == {"median": 2.0, "first": 1.5, "third": 2.5}
    assert benchmark.ratio({"reference": [2.0], "ours": [4.0]}) == {"median": 0.5, "first": 0.5, "third": 0.5}
    assert benchmark.ratio({"ours": [1.0]}) is None


def test_a_way_that_did_not_fit_is_a_dash(benchmark):
    found = {
        **{"batch": 8, "queue": 100, "width": 4, "arch": None, "sizes": [0, 0]},
        "peak_bytes": {"reference": None, "ours": 2_000_000},
        **{"ms": {"ours": 1.26}, "ratio": None, "processor_ratio": None},
    }
    line = benchmark.row(found)
    assert line.startswith("losses, 8 images, K 100, C 4 ")
    assert line.split()[-6:] == ["-", "0.002", "-", "1.3", "-", "-"]


def test_what_is_written_and_that_memory_is_less(benchmark, run_main, monkeypatch):
    # In this process, which is quicker; matrices of this size are new memory wherever they are made.
    monkeypatch.setattr(benchmark, "peak_memory", benchmark._cpu_peak)
    size = ["--batch-sizes", "64", "--queues", "40000", "--width", "8", "--no-step", "--chunk-mb", "4"]
    words = [*size, "--rounds", "2", "--seconds", "0", "--threads", "1"]
    shown, found = run_main(benchmark, words, {"gpu", "load_before"})
    assert "losses, 64 images, K 40000, C 8" in shown
    assert (found["seed"], found["threads"], found["chunk_bytes"]) == (0, 1, 4 * 2**20)
    (case,) = found["cases"]
    similarities = 64 * 5 * 40_000 * 4
    if case["peak_bytes"]["ours"] is not None:  # the system tells
        assert case["peak_bytes"]["ours"] < similarities / 2
        assert case["peak_bytes"]["reference"] > 3 * similarities
    assert [len(rounds) for rounds in case["ms_of_rounds"].values()] == [2, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--chunk-mb", "0"], "--chunk-mb 0.0: give"),
        (["--queues", "64", "10"], "--queues 10: give 20 or more"),
        (["--batch-sizes", "0"], "--batch-sizes 0: give 1 or more"),
        (["--preset", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options_are_refused(benchmark, refusal, words, message):
    assert message in refusal(benchmark.parse, words)
