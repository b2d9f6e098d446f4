"""The state of a run, from SLURM's queue, the job's own words and the run directory."""

import json
import os
import socket
import subprocess
import time
from datetime import datetime, timezone

import pytest

from polyscene.launch.cluster import run_overview
from polyscene.launch.cluster.job_record import JobRecord, JobState, write_record, write_state
from polyscene.launch.cluster.queue_state import QueueUnavailable, parse_queue
from polyscene.launch.cluster.run_overview import describe_run, describe_runs, find_all_runs
from polyscene.runtime.errors import UserError
from polyscene.runtime.run_lock import RunLock


def iso(seconds_ago=0.0):
    return datetime.fromtimestamp(time.time() - seconds_ago, timezone.utc).isoformat(timespec="seconds")


@pytest.fixture
def submitted(tmp_path):
    """``submitted(name, job_id, state=..., executor=...)``: the directory of a submitted run."""

    def make(name, job_id="17", executor="slurm", state=None, ago=600.0, **fields):
        run = tmp_path / name
        run.mkdir(parents=True)
        record = JobRecord(
            run=run,
            job_id=job_id,
            executor=executor,
            name=name,
            command=["pretrain", "pretrain/quickstart", f"out={run}"],
            submitted=iso(ago),
            cluster={},
            logs=str(run / "jobs"),
            max_requeues=3,
        )
        write_record(run, record)
        if state is not None:
            defaults = {"job_id": job_id, "started": iso(ago), "updated": iso(), "nodes": ["n1"]}
            write_state(run, JobState(state=state, **{**defaults, **fields}))
        return run

    return make


@pytest.fixture
def queue(monkeypatch):
    """``queue(text)``: what squeue answers; None: it cannot be asked. Returns the calls."""
    calls = []

    def make(text):
        def answer(job_ids):
            asked = list(job_ids)
            calls.append(asked)
            if text is None and asked:
                raise QueueUnavailable("squeue is not installed here")
            return {k: v for k, v in parse_queue(text or "").items() if k in asked}

        monkeypatch.setattr(run_overview, "query_queue", answer)
        return calls

    return make


@pytest.mark.parametrize(
    ("said", "line", "state"),
    [
        (None, "17|PENDING|0:00||Priority", "pending"),
        (None, "17|RUNNING|0:05|n1|None", "running"),
        ("running", "17|RUNNING|1:05|n[1-2]|None", "running"),
        ("running", "17|COMPLETING|1:05|n1|None", "running"),
        ("requeued", "17|PENDING|0:00||BeginTime", "requeued"),
        ("running", "17|PENDING|0:00||BeginTime", "requeued"),
        ("failed", "17|PENDING|0:00||BeginTime", "requeued"),
        ("failed", "17|RUNNING|0:00|n1|None", "running"),
        ("completed", "", "completed"),
        ("failed", "17|FAILED|0:10|n1|NonZeroExitCode", "failed"),
        ("failed", "", "failed"),
        ("stopped", "", "stopped"),
        ("stopped", "17|CANCELLED|0:10|n1|None", "cancelled"),
        ("running", "17|TIMEOUT|0:10|n1|TimeLimit", "timed out"),
        ("running", "17|OUT_OF_MEMORY|0:10|n1|OutOfMemory", "out of memory"),
        ("running", "17|NODE_FAIL|0:10|n1|NodeDown", "node failed"),
        ("running", "17|FAILED|0:10|n1|NonZeroExitCode", "failed"),
        ("running", "17|CANCELLED|0:10|n1|None", "cancelled"),
        ("running", "", "died"),
        (None, "17|CANCELLED|0:00||DependencyNeverSatisfied", "cancelled"),
        (None, "", "cancelled"),
        ("running", None, "running?"),
        (None, None, "pending?"),
        ("failed", None, "failed"),
    ],
)
def test_states_of_slurm_jobs(submitted, queue, said, line, state):
    queue(line)
    assert describe_run(submitted("a", state=said)).state == state


def test_the_words_of_an_earlier_submission_do_not_count(submitted, queue):
    queue("17|PENDING|0:00||Priority")
    run = submitted("a", state="completed", job_id="17")
    assert describe_run(run).state == "completed"
    write_state(run, JobState(state="completed", job_id="11", nodes=["n9"], message="old"))
    overview = describe_run(run)
    assert (overview.state, overview.nodes, overview.error) == ("pending", "", "")


def test_one_question_for_all_and_none_for_completed_jobs(submitted, queue):
    calls = queue("2|RUNNING|3:00|n2|None\n3_1|PENDING|0:00||Resources")
    runs = [
        submitted("a", "1", state="completed"),
        submitted("b", "2", state="running"),
        submitted("c", "3_1"),
        submitted("d", "4", executor="local", state="completed"),
    ]
    rows, warning = describe_runs(runs)
    assert calls == [["2", "3_1"]]
    assert warning is None
    assert [row.state for row in rows] == ["completed", "running", "pending", "completed"]
    assert (rows[1].seconds, rows[1].nodes, rows[2].reason) == (180, "n2", "Resources")
    assert [row.live for row in rows] == [False, True, True, False]


def test_one_warning_where_slurm_cannot_be_asked_and_a_state_is_open(submitted, queue):
    queue(None)
    failed = submitted("a", "1", state="failed")
    rows, warning = describe_runs([failed, submitted("b", "2", state="running")])
    assert [row.state for row in rows] == ["failed", "running?"]
    assert warning == "SLURM cannot be asked (squeue is not installed here); states come from the run directories"
    assert describe_runs([failed])[1] is None


def test_times_of_the_last_attempt(submitted, queue):
    queue("1|RUNNING|1:30|n1|None")
    assert describe_run(submitted("a", "1", state="running", started=iso(9000))).seconds == 90
    ended = submitted("b", "2", state="completed", started=iso(100), updated=iso(40))
    assert describe_run(ended).seconds == pytest.approx(60, abs=2)
    assert describe_run(submitted("c", "3")).seconds is None
    queue("4|CANCELLED|2:00|n1|None\n5|PENDING|0:00||BeginTime")
    assert describe_run(submitted("d", "4", state="running")).seconds == 120
    requeued = submitted("e", "5", state="requeued", started=iso(100), updated=iso(70))
    assert describe_run(requeued).seconds == pytest.approx(30, abs=2)


def test_errors_of_runs_that_are_not_completed(submitted, queue):
    queue("")
    run = submitted("a", state="failed", message="loss is nan")
    assert describe_run(run).error == "loss is nan"
    died = submitted("b", "5", state="running")
    (died / "jobs").mkdir()
    (died / "jobs" / "5_0_log.err").write_text("error: disk full\n")
    assert describe_run(died).error == "disk full"
    # What an earlier attempt said is not why the last one ended.
    write_state(died, JobState(state="running", job_id="5", attempt=1, message="SIGUSR2: saved and queued again"))
    assert describe_run(died).error == "disk full"
    queue("5|RUNNING|0:10|n1|None")
    assert describe_run(died).error == "SIGUSR2: saved and queued again"
    write_state(died, JobState(state="completed", job_id="5"))
    assert describe_run(died).error == ""


def test_local_jobs_live_as_long_as_their_process(submitted):
    process = subprocess.Popen(["sleep", "60"])
    try:
        run = submitted("a", str(process.pid), "local", state="running", ago=1, nodes=[socket.gethostname()])
        assert describe_run(run).state == "running"
        # Another process that has got the number of one that was submitted long ago.
        assert describe_run(submitted("b", str(process.pid), "local", "running", ago=9000, nodes=[])).state == "died"
        elsewhere = submitted("c", str(process.pid), "local", "running", nodes=["other"])
        assert describe_run(elsewhere).state == "running?"
        process.terminate()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is None:
            time.sleep(0.01)
        assert describe_run(run).state == "died"  # its remains are not collected yet
    finally:
        process.kill()
        process.wait()
    write_state(run, JobState(state="completed", job_id=str(process.pid)))
    assert describe_run(run).state == "completed"


def make_plain(folder, finished=False, config=None):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config or {"epochs": 3, "batch_size": 8}))
    start = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - 65))
    (folder / "log.txt").write_text(f"{start} 480 images\n")
    if finished:
        (folder / "results.json").write_text("{}")
    return folder


def test_runs_that_were_started_by_hand(tmp_path, monkeypatch):
    run = make_plain(tmp_path / "a")
    row = describe_run(run)
    assert (row.state, row.record, row.progress.epochs) == ("stopped", None, 3)
    assert row.seconds == pytest.approx(65, abs=3)
    assert describe_run(make_plain(tmp_path / "b", finished=True)).state == "completed"
    lock = RunLock(run)
    lock.acquire()
    assert describe_run(run).state == "running"
    assert describe_run(run).nodes == socket.gethostname()
    lock.release()
    assert describe_run(run).state == "stopped"


def test_a_job_that_failed_and_was_finished_by_hand(submitted, queue, tmp_path):
    queue("")
    run = submitted("a", state="failed", updated=iso(300))
    (run / "config.yaml").write_text("{}")
    assert describe_run(run).state == "failed"
    (run / "results.json").write_text("{}")
    assert describe_run(run).state == "completed"
    os.utime(run / "results.json", (time.time() - 1000,) * 2)  # of an earlier evaluation
    assert describe_run(run).state == "failed"


def test_which_folders_are_runs(tmp_path, submitted):
    plain = make_plain(tmp_path / "pretrain")
    inner = make_plain(plain / "svm", finished=True)
    make_plain(plain / "checkpoints" / "no")
    make_plain(plain / ".hidden")
    seeds = make_plain(tmp_path / "seeds", config={"seeds": [0, 1], "iterations": 3})
    make_plain(seeds / "seed-0")
    job = submitted("job")
    make_plain(job / "code" / "polyscene")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.yaml").write_text("not: a run")
    assert find_all_runs(tmp_path) == sorted([plain, inner, seeds, job])
    assert find_all_runs(plain) == [plain, inner]
    with pytest.raises(UserError, match="does not exist"):
        find_all_runs(tmp_path / "absent")
