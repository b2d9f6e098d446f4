import os
import signal
import subprocess
import sys

import pytest
import torch

from polyscene.launch.cluster.job_end import Outcome, Place, decide, read_outcomes
from polyscene.launch.cluster.job_record import JobState, read_state, write_state
from polyscene.launch.cluster.worker import Job, announce, remove_leftovers, run_command
from polyscene.runtime.preemption import StopRequest

# A process that is told to stop while it is stuck: in a loop that looks, or in none.
STUCK = """
import sys, time
from pathlib import Path
from polyscene.launch.cluster.job_end import Place
from polyscene.launch.cluster.worker import leave_in_time
from polyscene.runtime.preemption import StopRequest
with StopRequest() as stop, leave_in_time(stop, Place(Path(sys.argv[1]), "17", 2), 1, float(sys.argv[3])):
    if sys.argv[2] == "loop":
        with StopRequest() as inner:
            print("ready", flush=True)
            while inner.signal is None:
                time.sleep(0.01)
            time.sleep(float(sys.argv[4]))
    else:
        print("ready", flush=True)
        time.sleep(float(sys.argv[4]))
print("through", flush=True)
"""


def stuck(tmp_path, number, where, grace, busy):
    """Exit code and output of a process that gets a signal and is ``busy`` for some seconds after it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path), where, str(grace), str(busy)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_loop_that_stops_in_time_is_left_alone(tmp_path, number):
    assert stuck(tmp_path, number, "loop", 30, 0.1) == (0, "through\n")
    assert read_outcomes(Place(tmp_path, "17", 2)) == {}


def test_a_step_that_takes_too_long_is_left_without_saving(tmp_path):
    assert stuck(tmp_path, signal.SIGUSR2, "loop", 0.2, 60) == (75, "")
    assert read_outcomes(Place(tmp_path, "17", 2)) == {1: Outcome("stopped", "SIGUSR2, outside of a step", 75)}


def test_what_has_no_loop_goes_at_once_on_sigterm_and_may_finish_on_sigusr2(tmp_path):
    assert stuck(tmp_path, signal.SIGTERM, "none", 30, 60)[0] == 75
    assert read_outcomes(Place(tmp_path, "17", 2))[1].kind == "cancelled"
    assert stuck(tmp_path, signal.SIGUSR2, "none", 30, 0.3) == (0, "through\n")


def job(tmp_path, *words):
    return Job(run=str(tmp_path), logs=str(tmp_path), words=words, token="t", code=None, gpus=False, grace=1)


def test_what_a_command_says_becomes_an_outcome(tmp_path, words, capfd):
    with StopRequest() as stop:
        refused = run_command(job(tmp_path, *words(tmp_path / "run", "optim.lr=-1")), stop)
        assert (refused.kind, refused.exit_code) == ("refused", 2)
        assert refused.message.startswith("optim.lr=-1.0 must be greater than 0")
        assert "error: optim.lr=-1.0" in capfd.readouterr().err
        wrong = run_command(job(tmp_path, "export", "a", "b", "--formt", "timm"), stop)
        assert wrong.kind == "refused"
        assert "No such option" in wrong.message
        done = run_command(job(tmp_path, "scenes", str(tmp_path / "s"), "count=4", "size=[48,64]", "workers=1"), stop)
        assert done == Outcome("completed")


def test_a_stopped_command_is_stopped(tmp_path, words, capfd):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        line = words(tmp_path / "run", "model.backbone=resnet10t")
        assert run_command(job(tmp_path, *line), stop) == Outcome("stopped", "SIGUSR2")
    assert "stopped at step 1" in (tmp_path / "run" / "log.txt").read_text()


def test_a_bug_is_a_crash_with_its_traceback(tmp_path, words, capfd, monkeypatch):
    from polyscene.launch import pretrain

    monkeypatch.setattr(pretrain, "_pretrain", lambda config, world: 1 / 0)
    with StopRequest() as stop:
        outcome = run_command(job(tmp_path, *words(tmp_path / "run")), stop)
    assert outcome == Outcome("crashed", "ZeroDivisionError: division by zero", 1)
    assert "Traceback" in capfd.readouterr().err


def test_a_full_gpu_is_not_tried_again(tmp_path, words, capfd, monkeypatch):
    from polyscene.launch import pretrain

    def fail(config, world):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.15 GiB in all")

    monkeypatch.setattr(pretrain, "_pretrain", fail)
    with StopRequest() as stop:
        outcome = run_command(job(tmp_path, *words(tmp_path / "run")), stop)
    said = "CUDA out of memory. Tried to allocate 2.00 GiB; lower batch_size, or use more GPUs, which share the batch"
    assert outcome == Outcome("refused", said, 1)
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    # The node's own memory is not what was short.
    decision = decide({0: outcome}, 1, printed, failures=0, progress=True, max_requeues=3)
    assert (decision.state, decision.message) == ("failed", said)


def test_code_that_is_not_the_copy_is_not_run(tmp_path, capfd):
    with StopRequest() as stop:
        other = Job(
            run=str(tmp_path), logs=str(tmp_path), words=("x",), token="t", code=str(tmp_path), gpus=False, grace=1
        )
        outcome = run_command(other, stop)
    assert outcome.kind == "crashed"
    assert "not its copy" in outcome.message


def test_a_later_attempt_keeps_the_count_of_failures(tmp_path):
    write_state(tmp_path, JobState(state="requeued", job_id="17", attempt=0, failures=2, message="killed"))
    announce(tmp_path, Place(tmp_path, "17", 1), ["n1", "n2"])
    state = read_state(tmp_path)
    assert (state.state, state.attempt, state.failures, state.nodes) == ("running", 1, 2, ["n1", "n2"])
    announce(tmp_path, Place(tmp_path, "18", 0), ["n1"])
    assert read_state(tmp_path).failures == 0


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path):
    for name in ("17_0_result.pkl", "17_0_result.pkl.save_tmp", "17_1_result.pkl", "17_submitted.pkl"):
        (tmp_path / name).touch()
    remove_leftovers(Place(tmp_path, "17", 1), 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["17_1_result.pkl", "17_submitted.pkl"]
