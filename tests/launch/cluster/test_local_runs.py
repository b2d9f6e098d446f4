"""Whole runs as jobs of this machine: what tests on a real cluster show, without one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from submitit.core.utils import DelayedSubmission

from polyscene.launch.cluster.job_record import read_record, read_state
from polyscene.launch.cluster.local_job import LocalPlan, write_plan
from polyscene.launch.cluster.snapshot import take_snapshot
from polyscene.runtime.checkpoint import list_checkpoints, read_checkpoint
from polyscene.runtime.run_lock import live_owner

STEPS = 21
SMALL = ("model.backbone=resnet10t", "epochs=7", "checkpoint.every_steps=2")


@pytest.fixture
def start_job(polyscene, words, monkeypatch):
    """``start_job(cluster, out, *more)``: submit a small pretraining; its process number. It is ended with the test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = []

    def start(cluster, out, *more):
        code, _, errors = polyscene("submit", cluster, *words(out, *SMALL, *more))
        assert code == 0, errors
        jobs.append(int(read_record(out).job_id))
        return jobs[-1]

    yield start
    for job in jobs:
        try:
            os.killpg(job, signal.SIGKILL)
            os.waitpid(job, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def finished(run, seconds=200):
    """The last state of a job."""
    end = time.monotonic() + seconds
    while (state := read_state(run)) is None or state.state in ("running", "requeued"):
        assert time.monotonic() < end, log_of(run)
        time.sleep(0.05)
    return state


def log_of(run):
    texts = [f.read_text() for f in [*sorted((run / "jobs").glob("*_log.*")), run / "log.txt"] if f.exists()]
    return "\n".join(texts)[-6000:]


def wait_for_step(run, step, seconds=100):
    end = time.monotonic() + seconds
    while True:
        try:
            steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError):
            steps = []
        if max(steps, default=0) >= step:
            return max(steps)
        assert time.monotonic() < end, log_of(run)
        time.sleep(0.02)


def tasks_of(job):
    """Rank -> process number of a job's processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            variables = dict(v.partition(b"=")[::2] for v in (entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if variables.get(b"SUBMITIT_LOCAL_JOB_ID") == str(job).encode() and os.getpgid(int(entry.name)) == job:
            found[int(variables[b"SUBMITIT_LOCAL_GLOBALID"])] = int(entry.name)
    return found


def assert_same_state(one, other):
    states = [read_checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (one, other)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name


@pytest.fixture
def undisturbed(polyscene, words, tmp_path):
    """The run that nothing disturbs, in this process."""

    def run():
        out = tmp_path / "undisturbed"
        code, _, errors = polyscene(*words(out, *SMALL))
        assert code == 0, errors
        return out

    return run


def test_two_interrupted_processes_go_on(start_job, cluster_file, words, tmp_path):
    """SIGUSR2 to one of two processes, SIGKILL to the other in the next attempt: the run is that of torchrun."""
    cluster, out = cluster_file(executor="local", tasks_per_node=2, time="10m"), tmp_path / "run"
    job = start_job(cluster, out)
    wait_for_step(out, 3)
    os.kill(tasks_of(job)[1], signal.SIGUSR2)
    first = wait_for_step(out, 6)
    os.kill(tasks_of(job)[1], signal.SIGKILL)
    state = finished(out)
    assert state.state == "completed", log_of(out)
    assert (state.attempt, state.failures) == (2, 1)
    log = (out / "log.txt").read_text()
    assert "attempt 0: SIGUSR2: saved and queued again" in log or "attempt 0: asked to stop: saved" in log
    assert re.search(r"attempt 1: process 1 on .*: killed; queued again \(1 of 3\)", log)
    stops = [int(n) for n in re.findall(r"continuing at step (\d+)", log)]
    assert stops[0] >= 3
    assert stops[1] >= first - 2
    other = tmp_path / "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "polyscene.launch.cli", *map(str, words(other, *SMALL))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert_same_state(out, other)


def stand_in():
    """In place of a command: saves when it is told to, and is done at the second attempt. Stored by value."""

    def until_stopped(logs):
        import os
        import signal
        import time
        from pathlib import Path

        from polyscene.launch.cluster.job_end import Outcome, Place, write_outcome
        from polyscene.launch.cluster.worker import announce

        told = []
        signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
        attempt = int(os.environ["POLYSCENE_ATTEMPT"])
        job = os.environ["SUBMITIT_LOCAL_JOB_ID"]
        announce(Path(logs).parent, Place(Path(logs), job, attempt), ["here"])
        (Path(logs) / f"started-{attempt}").touch()
        while attempt == 0 and not told:
            time.sleep(0.01)
        if told:
            (Path(logs).parent / "checkpoints").mkdir()
            (Path(logs).parent / "checkpoints" / "step-00000005.pt").touch()
        outcome = Outcome("stopped", "SIGUSR2") if told else Outcome("completed")
        write_outcome(Place(Path(logs), job, attempt), 0, outcome)

    return until_stopped


def test_a_time_limit_is_gone_past(tmp_path):
    """The processes are told to save well before the limit, and start again with a limit of the same length."""
    run = tmp_path / "run"
    logs = run / "jobs"
    logs.mkdir(parents=True)
    plan = LocalPlan(
        run=str(run),
        logs=str(logs),
        tasks=1,
        seconds=70,
        warning=62,
        max_requeues=0,
        slots=None,
        parallel=1,
        token="t",
    )
    write_plan(run / "plan.json", plan)
    command = [sys.executable, "-m", "polyscene.launch.cluster.local_job", str(run / "plan.json")]
    start = time.monotonic()
    job = subprocess.Popen(command)
    DelayedSubmission(stand_in(), str(logs)).dump(logs / f"{job.pid}_submitted.pkl")
    assert job.wait(100) == 0
    assert time.monotonic() - start >= 8
    assert (logs / "started-1").exists()
    state = read_state(run)
    assert (state.state, state.attempt, state.failures) == ("completed", 1, 0)
    assert "attempt 0: SIGUSR2: saved and queued again" in (run / "log.txt").read_text()


def test_a_crash_is_not_started_again_for_ever(start_job, cluster_file, tmp_path, monkeypatch):
    """Every attempt fails while importing: one start and two more."""
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('no such library')\n")
    out = tmp_path / "run"
    start_job(cluster_file(executor="local", max_requeues=2, setup=[f"export PYTHONPATH={broken.parent}"]), out)
    state = finished(out)
    assert (state.state, state.attempt, state.failures) == ("failed", 2, 3)
    assert state.message == "OSError: no such library; not started again after 3 failures"
    assert (out / "log.txt").read_text().count("queued again") == 2


def test_bad_data_is_not_started_again(start_job, cluster_file, photos, draw, tmp_path):
    """The folder has fewer images than a batch, which only shows in the job."""
    for i in range(3):
        draw(tmp_path / "few" / f"{i}.jpg", i)
    out = tmp_path / "run"
    start_job(cluster_file(executor="local"), out, f"data.root={tmp_path / 'few'}")
    state = finished(out)
    assert (state.state, state.attempt) == ("failed", 0)
    assert "batch" in state.message


def test_a_cancelled_job_saves_and_does_not_come_back(start_job, cluster_file, polyscene, tmp_path):
    out = tmp_path / "run"
    start_job(cluster_file(executor="local"), out)
    wait_for_step(out, 3)
    code, _, errors = polyscene("jobs", "--cancel", out)
    assert code == 0, errors
    state = finished(out)
    assert state.state == "stopped"
    assert "stopped at step" in (out / "log.txt").read_text()
    assert list_checkpoints(out / "checkpoints")


def test_a_second_run_is_refused_while_the_first_lives(
    start_job, cluster_file, polyscene, words, undisturbed, tmp_path
):
    cluster, out = cluster_file(executor="local"), tmp_path / "run"
    job = start_job(cluster, out)
    code, _, errors = polyscene("submit", cluster, *words(out, *SMALL))
    assert code == 2
    assert f"belongs to process {job}, which waits or runs" in errors
    wait_for_step(out, 1)
    for task in tasks_of(job).values():
        os.kill(task, signal.SIGSTOP)  # or it may be finished before the second has begun
    code, _, errors = polyscene(*words(out, *SMALL))
    assert code == 2, errors
    assert f"'{out}' is in use by job {job}" in errors
    # The owner dies without a word, and so do its processes: nothing stands in the way.
    os.killpg(job, signal.SIGKILL)
    os.waitpid(job, 0)
    end = time.monotonic() + 20
    while live_owner(out) is not None and time.monotonic() < end:
        time.sleep(0.05)
    code, _, errors = polyscene(*words(out, *SMALL))
    assert code == 0, errors
    assert_same_state(out, undisturbed())


def test_a_sweep_runs_as_many_at_a_time_as_allowed(cluster_file, polyscene, words, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster, out = cluster_file(executor="local", array_parallelism=1), tmp_path / "sweep"
    swept = ("optim.lr=[0.01,0.03]", "max_steps=1", "--sweep")
    code, said, errors = polyscene("submit", cluster, *words(out, *SMALL, *swept))
    assert code == 0, errors
    runs = [out / "optim.lr=0.01", out / "optim.lr=0.03"]
    assert all(str(run) in said for run in runs)
    times = []
    for run in runs:
        assert finished(run).state == "completed", log_of(out)
        log = read_state(run)
        times.append((log.started, log.updated))
        os.waitpid(int(read_record(run).job_id), 0)
    first, second = sorted(times)
    assert first[1] <= second[0]


def test_editing_the_source_does_not_change_a_job(cluster_file, tmp_path):
    """The job is held back by its own setup until the source is broken."""
    checkout = take_snapshot(tmp_path / "checkout")
    go = tmp_path / "go"
    cluster = cluster_file(executor="local", setup=[f"while [ ! -e {go} ]; do sleep 0.1; done"])
    command = [sys.executable, "-m", "polyscene.launch.cli", "submit", cluster, "scenes", tmp_path / "scenes"]
    command += ["count=4", "size=[48,64]", "workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (checkout / "polyscene" / "launch" / "scenes.py").write_text("raise RuntimeError('this is half-edited')\n")
    go.touch()
    assert finished(tmp_path / "scenes-job").state == "completed", log_of(tmp_path / "scenes-job")
    assert (tmp_path / "scenes" / "NYUD_MT").is_dir()


def test_debug_runs_here_and_now(cluster_file, polyscene, words, tmp_path):
    out = tmp_path / "run"
    code, said, errors = polyscene("submit", cluster_file(executor="debug"), *words(out, *SMALL, "max_steps=1"))
    assert code == 0, errors
    assert f"run directory: {out}" in said
    assert (out / "backbone.safetensors").exists()
    assert read_record(out).executor == "debug"
