"""Steps on this machine: side by side, failing, stopped, left behind by a killed chain."""

import os
import threading
from pathlib import Path

import pytest
from chain_jobs import DIAMOND

from polyscene.launch import chain_local
from polyscene.launch.chain import new_record
from polyscene.launch.chain_config import load_chain
from polyscene.launch.chain_record import read_chain_record
from polyscene.launch.cluster import submission
from polyscene.launch.cluster.job_record import JobState, write_state
from polyscene.runtime.errors import UserError


def test_branches_side_by_side(chain_file, polyscene, jobs):
    jobs.seconds = 0.6
    assert polyscene("chain", chain_file(DIAMOND), "parallel=2")[0] == 0
    assert jobs.most == 2


def test_a_failed_step_cancels_those_after_it_and_no_others(chain_file, polyscene, jobs):
    file = chain_file({**DIAMOND, "later": ("export images/a/1.jpg runs/x.pth", "end")})
    jobs.fail["left"] = "no image can be read"
    code, _, err = polyscene("chain", file)
    assert code == 1
    assert jobs.started == ["scenes-job", "left", "right"]  # the other branch is not stopped
    lines = err.splitlines()
    assert "left: failed: no image can be read" in lines
    assert "cancelled, because 'left' failed: end, later" in lines
    record = read_chain_record(Path("runs"))
    assert {name: step.state for name, step in record.steps.items()} == {
        "data": "completed", "left": "failed", "right": "completed", "end": "cancelled", "later": "cancelled",
    }  # fmt: skip
    assert record.steps["later"].message == "'left' failed: no image can be read"
    _, out, _ = polyscene("jobs", "runs")
    told = [line for line in out.splitlines() if line.startswith("not started")]
    assert told == [f"not started: chain.yaml, {n}: 'left' failed: no image can be read" for n in ("end", "later")]
    # The same command goes on with what is not finished.
    jobs.fail.clear()
    jobs.started.clear()
    code, _, err = polyscene("chain", file)
    assert code == 0, err
    assert jobs.started == ["left", "report-job", "x-job"]


def test_a_step_that_leaves_nothing_has_failed(chain_file, polyscene, jobs):
    jobs.fail["scenes-job"] = "nothing"
    code, _, err = polyscene("chain", chain_file(DIAMOND))
    assert code == 1
    assert "data: failed: its process ended without an error, but 'runs/scenes' is not finished" in err
    assert jobs.started == ["scenes-job"]


def test_a_step_that_is_refused_at_its_turn(chain_file, polyscene, monkeypatch):
    def refuse(cluster, commands):
        raise UserError("'runs/scenes' is in use")

    monkeypatch.setattr(submission, "submit_commands", refuse)
    code, _, err = polyscene("chain", chain_file(DIAMOND))
    assert code == 1
    assert "data: failed: 'runs/scenes' is in use" in err
    assert "cancelled, because 'data' failed: left, right, end" in err


def test_ctrl_c_lets_steps_save_and_the_chain_can_go_on(chain_file, jobs, monkeypatch):
    jobs.seconds = 100.0
    chain = load_chain(chain_file(DIAMOND))
    record = new_record(chain, [])
    interrupted = []

    def stop(number):
        interrupted.append(number)
        write_state(Path("runs/scenes-job"), JobState(state="stopped", job_id=str(number)))

    def press(running):
        assert list(running) == ["data"]
        raise KeyboardInterrupt

    monkeypatch.setattr(chain_local, "interrupt", stop)
    Path("runs").mkdir()
    said = []
    with pytest.raises(KeyboardInterrupt):
        chain_local.run_locally(chain, record, jobs, said.append, show=press)
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.cancel()
    assert interrupted == [os.getpid()]
    assert said[-1] == "stopping: data"
    assert {step.state for step in read_chain_record(Path("runs")).steps.values()} == {"waiting"}


def test_a_step_that_a_killed_chain_left_running_is_waited_for(chain_file, jobs):
    chain = load_chain(chain_file(DIAMOND))
    step = chain.steps[0]
    jobs.seconds = 0.3
    jobs(step.cluster, [step.command.words])
    jobs.started.clear()
    record, said = new_record(chain, []), []
    assert chain_local.run_locally(chain, record, jobs, said.append)
    assert said[0] == f"data: is running already, as process {os.getpid()}"
    assert jobs.started == ["left", "right", "report-job"]


def test_executor_debug_runs_the_steps_in_this_process(chain_file, polyscene):
    Path("debug.yaml").write_text("executor: debug\nsnapshot: false\n")
    steps = {
        "data": ("scenes runs/scenes count=4 size=[48,64] workers=1",),
        "bad": ("export images/a/1.jpg runs/x.pth", "data"),
        "end": ("export runs/x.pth runs/y.pth", "bad"),
    }
    code, _, err = polyscene("chain", chain_file(steps, cluster="debug.yaml"))
    assert code == 1
    assert "data: completed" in err
    assert Path("runs/scenes/scenes.json").is_file()
    assert "bad: failed: images/a/1.jpg" in err
    assert "cancelled, because 'bad' failed: end" in err
