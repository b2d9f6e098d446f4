"""Interrupted, and in several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import torch

from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.runtime.checkpoint import checkpoint_step, list_checkpoints


def test_control_c_saves_and_the_same_command_goes_on(dense_words, start, polyscene, tmp_path):
    out = tmp_path / "run"
    words = dense_words(out, "iterations=100000", "task=depth", "model.kind=frozen", "evaluate.pictures=0")
    process = start(*words)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command continues from there" in err
    assert "Traceback" not in err
    done = checkpoint_step(list_checkpoints(out / "checkpoints")[-1])
    assert not (out / "results.json").exists()

    code, _, err = polyscene(*words, f"max_steps={done + 1}")
    assert code == 0, err
    assert f"continuing at step {done}" in err
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, done + 2))


def test_two_processes_train_evaluate_and_keep_old_tasks(dense_run, dense_words, tmp_path):
    out = tmp_path / "run"
    words = dense_words(out, f"model.base={dense_run}", "task=saliency", "evaluate.all_tasks=true", "iterations=2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "polyscene.launch.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "2 x CPU" in done.stderr
    assert done.stdout.count("All metrics") == 1
    old, new = load_model(dense_run).model.state_dict(), load_model(out).model.state_dict()
    assert all(torch.equal(value, new[key]) for key, value in old.items())
    before, after = (json.loads((run / "results.json").read_text()) for run in (dense_run, out))
    assert abs(before["depth_rmse"] - after["depth_rmse"]) < 1e-5  # shards merged in another order
    assert "saliency_iou" in after
