"""The benchmark of several processes: what it derives from times, and one small run of two processes."""

import subprocess

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("scaling")


def test_efficiency_and_shares(benchmark):
    case = benchmark.CASES["cpu"]
    seconds = {"one alone": [1.0, 2.0, 4.0], "side by side": [1.25, 2.5, 4.0], "together": [2.0, 4.0, 5.0]}
    found = benchmark.summary(seconds, case, 4)
    assert found["images_per_second"] == {"one alone": 8.0, "side by side": 25.6, "together": 16.0}
    assert found["efficiency"]["median"] == 0.5
    assert found["by_sharing_the_machine"]["median"] == 0.8
    assert found["communication_share"]["median"] == 0.375


@pytest.mark.parametrize("main", [True, False])
def test_only_the_first_process_works_alone(benchmark, main):
    class World:
        is_main, device, barriers = main, torch.device("cpu"), 0

        def barrier(self):
            self.barriers += 1

    world, done = World(), []
    steps = {way: lambda way=way: done.append(way) for way in benchmark.WAYS}
    for way in benchmark.WAYS:
        benchmark.time_turn(way, steps, 2, world)
    assert done == (["one alone"] * 2 if main else []) + ["side by side"] * 2 + ["together"] * 2
    assert world.barriers == 6


def test_two_processes(benchmark, run_main):
    words = ["--processes", "2", "--rounds", "1", "--steps", "1", "--batch-size", "4", "--queue", "32"]
    words += ["--sizes", "64", "32"]
    shown, document = run_main(benchmark, words, {"seed", "threads_a_process", "gpu", "load_before"})
    (result,) = document["results"]
    assert result["processes"] == 2
    assert [len(found) for found in result["step_ms_of_rounds"].values()] == [1, 1, 1]
    assert document["case"]["sizes"] == [64, 32]
    assert "efficiency" in shown


def test_processes_that_fail_end_it(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, env: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match="2 processes failed"):
        benchmark.measure(benchmark.CASES["cpu"], 2, benchmark.parse(["--processes", "2"]))


@pytest.mark.parametrize("words", [["--processes", "1"], ["--processes", "100000"], ["--steps", "0"]])
def test_options_that_cannot_be_are_refused(benchmark, refusal, words):
    assert words[0] in refusal(benchmark.parse, words)
