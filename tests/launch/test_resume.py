"""Nothing is ever lost: killed, stopped, damaged runs end with the bits of an undisturbed one."""

import json
import os
import signal
import time

import pytest
import torch

from polyscene.runtime.checkpoint import list_checkpoints, read_checkpoint


def final_state(out):
    state = read_checkpoint(list_checkpoints(out / "checkpoints")[-1])
    return state["step"], {**state["model"], "norm": state["norm_statistics"]["query"]}, state["optimizer"]


def assert_same_bits(one, two):
    (step, model, optimizer), (other_step, other_model, other_optimizer) = final_state(one), final_state(two)
    assert step == other_step
    assert model.keys() == other_model.keys()
    for name, value in model.items():
        assert torch.equal(value, other_model[name]), name
    for index, slot in optimizer["state"].items():
        assert torch.equal(slot["momentum_buffer"], other_optimizer["state"][index]["momentum_buffer"])
    assert (one / "backbone.safetensors").read_bytes() == (two / "backbone.safetensors").read_bytes()


def steps_logged(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait_for_step(out, step, process):
    deadline = time.monotonic() + 120
    while not any(s >= step for s in steps_logged(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def reference(undisturbed, words, polyscene):
    """The run that nobody disturbed (made once, with no worker process)."""
    if not undisturbed.exists():
        code, _, err = polyscene(*words(undisturbed))
        assert code == 0, err
    return undisturbed


@pytest.mark.parametrize(("workers", "kill_at"), [(0, 1), (1, 5), (4, 7)])
def test_kill_9_and_the_same_command_end_bit_identical(reference, tmp_path, words, start, workers, kill_at):
    out = tmp_path / "run"
    command = words(out, f"data.workers={workers}")
    process = start(*command)
    wait_for_step(out, kill_at, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "backbone.safetensors").exists(), "the run ended before it could be killed"
    again = start(*command)
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert_same_bits(reference, out)
    assert steps_logged(out) == list(range(1, 10)), "every step is logged exactly once"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_signal_saves_the_current_step_and_the_same_command_continues(
    reference, tmp_path, words, start, polyscene, number, code
):
    out = tmp_path / "run"
    command = words(out, "checkpoint.every_steps=null")
    process = start(*command)
    wait_for_step(out, 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "the same command continues" in err
    stopped = list_checkpoints(out / "checkpoints")
    assert len(stopped) == 1, "saved although no checkpoint was due"
    assert f"{steps_logged(out)[-1]:08d}" in stopped[0].name
    result, _, err = polyscene(*command)
    assert result == 0, err
    assert "continuing at step" in err
    assert_same_bits(reference, out)


def test_a_damaged_newest_checkpoint_falls_back(reference, tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=6"))[0] == 0
    newest = list_checkpoints(out / "checkpoints")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    code, _, err = polyscene(*words(out))
    assert code == 0, err
    assert "is damaged: checksum" in err
    assert "falling back to 'step-00000004.pt'" in err
    assert_same_bits(reference, out)


def test_finished_run_says_so_and_a_longer_one_continues(tmp_path, words, polyscene, reference):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=4"))[0] == 0
    code, _, err = polyscene(*words(out, "max_steps=4"))
    assert (code, "already finished (4 steps)" in err) == (0, True)
    assert polyscene(*words(out))[0] == 0
    assert_same_bits(reference, out)


def test_another_config_in_the_same_folder_is_refused(tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=1"))[0] == 0
    code, _, err = polyscene(*words(out, "optim.lr=0.5", "log.every=2"))
    assert code == 2
    assert "optim.lr: 0.06 -> 0.5" in err
    assert "log.every" not in err
    code, _, err = polyscene(*words(out, "optim.lr=0.5", "max_steps=1", "overwrite=true"))
    assert code == 0, err


def test_two_processes_equal_one_and_resume_on_another_number(tmp_path, words, polyscene, photos):
    import subprocess
    import sys

    # BatchNorm over 4 images amplifies rounding from step to step: larger crops and small steps keep losses comparable
    # (with a tiny encoder, test_step.py compares weights after large ones). Rounding may also swap two neighbours of
    # equal rank: here all slots are neighbours.
    calm = ("views.large.size=64", "views.small.size=48", "optim.lr=0.0001", "neighbours.k=20")

    def torchrun(out, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["-m", "polyscene.launch.cli", *words(out, *calm, *more)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    def losses(out):
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    single, double = tmp_path / "single", tmp_path / "double"
    assert polyscene(*words(single, "max_steps=6", *calm))[0] == 0
    torchrun(double, "max_steps=6")
    assert losses(double) == pytest.approx(losses(single), abs=1e-5)
    one, two = final_state(single)[1], final_state(double)[1]
    torch.testing.assert_close(one["queue.embeddings"], two["queue.embeddings"], atol=1e-4, rtol=1e-4)
    # Two processes continue with their own BatchNorm statistics: stopping half-way changes nothing.
    halves = tmp_path / "halves"
    torchrun(halves, "max_steps=3")
    torchrun(halves, "max_steps=6")
    assert_same_bits(double, halves)
    # One process may take over; it says that bits will differ.
    code, _, err = polyscene(*words(halves, *calm))
    assert code == 0, err
    assert "no longer bit-identically" in err
    assert losses(halves)[:6] == losses(double)
