"""``polyscene jobs``: rows, results side by side, following and cancelling."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from polyscene.launch.cluster.job_record import JobRecord, JobState, now, read_state, write_record, write_state
from polyscene.launch.cluster.listing import Column, format_duration, plain_lines, print_rows
from polyscene.launch.cluster.results_table import differing_keys
from polyscene.runtime.results import Evaluation, Metric, write_results


@pytest.fixture
def training(tmp_path):
    """``training(name, **keys)``: the directory of a pretraining that was started by hand and stopped at step 30."""

    def make(name, lr=0.1, seed=0, job=None, state=None, message=""):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        values = {"out": str(run), "seed": seed, "epochs": 20, "batch_size": 8, "views": {"large": {"count": 2}}}
        (run / "config.yaml").write_text(json.dumps({**values, "optim": {"lr": lr, "momentum": 0.9}}))
        (run / "log.txt").write_text("2026-11-21 17:00:00 24 images\n")
        line = {"step": 30, "loss": 2 + lr, "epoch": 10.0, "images_per_second": 40.0}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if job is not None:
            record = JobRecord(
                run=run, job_id=job, executor="slurm", name=name, command=["pretrain", "pretrain/quickstart"],
                submitted=now(), cluster={}, logs=str(run / "jobs"), max_requeues=3,
            )  # fmt: skip
            write_record(run, record)
        if state is not None:
            write_state(run, JobState(state=state, job_id=job, nodes=["n1", "n2"], started=now(), updated=now(),
                                      message=message))  # fmt: skip
        return run

    return make


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    """A path without squeue."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def cells(line):
    return line.split()


def test_a_row_for_every_run(training, polyscene, tmp_path, no_slurm):
    training("a")
    training("b", job="7", state="failed", message="loss is nan at step 12")
    training("c", job="8", state="completed")
    code, out, err = polyscene("jobs", tmp_path / "runs")
    assert (code, err) == (0, "")
    head, first, second, third = out.splitlines()
    assert cells(head) == [
        "run",
        "job",
        "state",
        "nodes",
        "elapsed",
        "epoch",
        "step",
        "done",
        "images/s",
        "last",
        "error",
    ]
    assert cells(first)[1:4] == ["-", "stopped", "-"]
    assert cells(first)[-5:] == ["10.0/20", "30/60", "50%", "40", "-"]
    assert cells(second)[1:4] == ["7", "failed", "n1,n2"]
    assert second.endswith("loss is nan at step 12")
    assert cells(third)[2] == "completed"


def test_one_warning_where_slurm_is_absent(training, polyscene, tmp_path, no_slurm):
    for i in range(4):
        training(f"r{i}", job=str(i), state="running")
    code, out, err = polyscene("jobs", tmp_path / "runs")
    assert code == 0
    assert out.count("running?") == 4
    assert (
        err == "warning: SLURM cannot be asked (squeue is not installed here); states come from the run directories\n"
    )


def test_a_sweep_is_a_table_of_the_keys_that_differ(training, polyscene, tmp_path):
    for lr in (0.1, 0.3):
        for seed in (0, 1, 2):
            training(f"lr={lr},seed={seed}", lr, seed)
    code, out, _ = polyscene("jobs", tmp_path / "runs", "--table")
    assert code == 0
    title, head, *rows = out.splitlines()
    assert title == "pretrain"
    assert cells(head) == ["run", "seed", "optim.lr", "state", "step", "loss"]
    assert len(rows) == 6
    assert [cells(row)[1:3] for row in rows] == [[str(s), str(lr)] for lr in (0.1, 0.3) for s in (0, 1, 2)]
    assert {cells(row)[-1] for row in rows} == {"2.100", "2.300"}


def test_results_come_before_what_was_logged(polyscene, tmp_path):
    for k, value in ((5, 0.25), (20, 0.5)):
        run = tmp_path / f"k{k}"
        run.mkdir()
        (run / "config.yaml").write_text(f"weights: runs/a\nout: {run}\nk: {k}\n")
        write_results(
            run,
            Evaluation("probe", "kNN", "runs/a", [Metric("accuracy", "accuracy")], {"accuracy": value}, deviation={}),
        )
    code, out, _ = polyscene("jobs", tmp_path, "--table")
    assert code == 0
    title, head, *rows = out.splitlines()
    assert title == "probe"
    assert cells(head) == ["run", "k", "state", "accuracy"]
    assert [cells(row)[1:] for row in rows] == [["20", "completed", "50.0%"], ["5", "completed", "25.0%"]]


def test_a_run_that_waits_shows_what_its_command_sets(training, polyscene, tmp_path, no_slurm):
    training("a", lr=0.1, job="1", state="completed")
    waits = training("b", job="2")
    for name in ("config.yaml", "metrics.jsonl", "log.txt"):
        (waits / name).unlink()
    record = json.loads((waits / "job.json").read_text())
    record["command"] = ["pretrain", "pretrain/quickstart", "optim.lr=0.7", f"out={waits}"]
    (waits / "job.json").write_text(json.dumps(record))
    _, out, _ = polyscene("jobs", tmp_path / "runs", "--table")
    rows = {cells(row)[0].rpartition("/")[2]: row for row in out.splitlines()}
    assert "0.7" in cells(rows["b"])
    assert "pending?" in cells(rows["b"])


def test_keys_that_differ():
    first = {"seed": 0, "out": "a", "optim.lr": 0.1, "tasks": [1, 2], "only": 1}
    second = {"seed": 1, "out": "b", "optim.lr": 0.1, "tasks": [2, 1]}
    assert differing_keys([first, second]) == ["seed", "tasks"]
    assert differing_keys([first]) == []


def test_plain_lines_and_durations():
    lines = plain_lines([Column("run"), Column("step", right=True)], [["runs/a", "5"], ["b", ""]], "title")
    assert lines == ["title", "run     step", "runs/a     5", "b          -"]
    assert [format_duration(s) for s in (None, 0.4, 59, 61, 3661, 90061)] == [
        "",
        "0s",
        "59s",
        "1m 01s",
        "1h 01m",
        "1d 01h",
    ]


def test_a_terminal_gets_a_table_that_fits():
    columns = [Column("run"), Column("state"), Column("step", right=True), Column("empty"), Column("error", long=True)]
    rows = [["runs/a", "failed", "12/90", "", "a long story " * 5], ["runs/" + "b" * 30, "running", "7", "", ""]]
    for width in (60, 100, 160):
        file = io.StringIO()
        print_rows(Console(file=file, force_terminal=True, color_system=None, width=width), columns, rows)
        lines = file.getvalue().splitlines()
        # The last column is in the table where there is room, and below it where there is not.
        assert ("error" in file.getvalue()) == (width > 90)
        assert lines[-1].startswith("runs/a: a long story") == (width < 90)
        assert all(len(line) <= width for line in lines if not line.startswith("runs/a:"))
        assert "empty" not in file.getvalue()
        assert "12/90" in file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "'absent' does not exist"),
        (["empty"], "'empty' holds no run"),
        (["--follow", "absent"], "'absent' does not exist"),
        (["--cancel", "runs"], "'runs' is not a run directory; it holds 1, such as 'runs/a'"),
        (["--cancel", "runs/a"], "'runs/a' has no job, and no process works in it"),
        (["runs", "--follow", "runs/a"], "give one of DIR"),
        (["--table", "--follow", "runs/a"], "give one of DIR"),
    ],
)
def test_refusals_are_one_line(training, polyscene, tmp_path, monkeypatch, arguments, words):
    training("a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = polyscene("jobs", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_follow_says_how_it_ended(training, polyscene, no_slurm):
    run = training("a", job="7", state="failed", message="disk full")
    (run / "jobs").mkdir()
    (run / "jobs" / "7_0_log.err").write_text("24 images\nerror: disk full\n")
    (run / "jobs" / "7_1_log.err").write_text("of another process\n")
    code, out, _ = polyscene("jobs", "--follow", run)
    assert code == 1
    assert out.splitlines() == ["24 images", "error: disk full", f"-- '{run}' failed: disk full"]


def test_cancel_stops_a_run_that_was_started_by_hand(words, polyscene, start, tmp_path):
    run = tmp_path / "run"
    process = start(*words(run, "epochs=4000"))
    try:
        end = time.monotonic() + 100
        while not (run / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.1)
        _, listed, _ = polyscene("jobs", run)
        assert "running" in listed
        code, out, err = polyscene("jobs", "--cancel", run)
        assert (code, err) == (0, "")
        assert f"process {process.pid}" in out
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert list((run / "checkpoints").glob("step-*.pt"))
    assert polyscene("jobs", "--cancel", run)[0] == 2


def test_cancel_of_a_job_that_waits_is_remembered(training, polyscene, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text("#!/bin/sh\necho '7|PENDING|0:00||Priority'\n")
    (programs / "scancel").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/cancelled\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    run = training("a", job="7")
    code, out, _ = polyscene("jobs", "--cancel", run)
    assert code == 0
    assert "job 7 was pending" in out
    assert (tmp_path / "cancelled").read_text() == "7\n"
    assert read_state(run).state == "stopped"
    (programs / "squeue").write_text("#!/bin/sh\n")
    _, listed, _ = polyscene("jobs", run)
    assert "cancelled by polyscene jobs --cancel" in listed


def test_it_starts_without_torch(training, tmp_path):
    training("a", job="7", state="completed")
    code = (
        "import resource, sys\n"
        "sys.argv = ['polyscene', 'jobs', sys.argv[1]]\n"
        "from polyscene.launch import cli\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'submitit', 'matplotlib', 'tensorboard'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sorted(heavy), used.ru_utime + used.ru_stime)\n"
    )
    for table in ([], ["--table"]):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("sys.argv[1]]", f"sys.argv[1], *{table}]"), str(tmp_path / "runs")],
            capture_output=True,
            text=True,
            check=True,
        )
        heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
        assert heavy == "[]"
        assert float(seconds) < 2  # of processor time: the machine may be busy
