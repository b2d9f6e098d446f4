import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from polyscene.runtime.errors import UserError
from polyscene.runtime.run import open_run
from polyscene.runtime.run_lock import RunLock, hold_run, live_owner, read_owner, run_locks

HOLD = "import sys; from pathlib import Path; from polyscene.runtime.run_lock import *\nhold_run(Path(sys.argv[1]))\n"


@pytest.fixture
def holder(tmp_path):
    """``holder()``: another process that holds ``tmp_path``."""
    processes = []

    def start(job=""):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "POLYSCENE_JOB": job},
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def write_owner(path, **changes):
    """A lock of another machine."""
    lock = RunLock(path)
    owner = replace(lock._owner, token="other", machine="node7", processes="elsewhere", pid=1, **changes)
    lock.file.write_text(json.dumps(asdict(owner)))
    return owner


def grow_old(path, seconds):
    file = path / ".lock"
    past = time.time() - seconds
    os.utime(file, (past, past))


def test_the_second_process_is_refused_and_told_who_is_there(tmp_path, holder):
    process = holder(job="17")
    with pytest.raises(UserError, match=f"is in use by job 17, process {process.pid} on .*; wait for it, stop it"):
        open_run(tmp_path, {"seed": 0})
    assert live_owner(tmp_path).pid == process.pid


def test_the_lock_is_given_back_at_the_end_of_a_process(tmp_path, holder):
    process = holder()
    process.communicate()
    assert not (tmp_path / ".lock").exists()
    open_run(tmp_path, {"seed": 0})


def test_a_killed_owner_stands_in_nobodys_way(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()
    with run_locks():
        hold_run(tmp_path)
        assert live_owner(tmp_path).pid == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_number_that_another_process_has_now_is_not_its_owner(tmp_path):
    lock = RunLock(tmp_path)
    owner = replace(lock._owner, token="old", pid=os.getppid(), started="1")
    lock.file.write_text(json.dumps(asdict(owner)))
    lock.acquire()
    lock.release()


def test_a_process_may_open_its_run_again(tmp_path):
    with run_locks():
        hold_run(tmp_path)
        hold_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_runs_within_runs_have_locks_of_their_own(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with run_locks():
        hold_run(tmp_path)
        hold_run(tmp_path / "seed-0")
        assert live_owner(tmp_path / "seed-0").pid == os.getpid()
    assert live_owner(tmp_path) is None


def test_an_owner_elsewhere_is_alive_while_it_gives_signs_of_life(tmp_path):
    write_owner(tmp_path)
    grow_old(tmp_path, 50)
    with pytest.raises(UserError, match="on node7, which gave a sign of life 5. s ago; .* noticed after 60 s"):
        RunLock(tmp_path).acquire()
    grow_old(tmp_path, 70)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert read_owner(lock.file) == lock._owner
    lock.release()


def test_a_holder_gives_signs_of_life_until_it_lets_go(tmp_path):
    lock = RunLock(tmp_path, beat=0.02)
    lock.acquire()
    grow_old(tmp_path, 1000)
    end = time.monotonic() + 10
    while time.time() - lock.file.stat().st_mtime > 100 and time.monotonic() < end:
        time.sleep(0.02)
    assert time.time() - lock.file.stat().st_mtime < 100
    lock.release()
    assert not lock.file.exists()


def test_an_earlier_attempt_of_the_same_job_is_waited_for(tmp_path):
    """The machine that ran it may have died a moment ago: its lock grows old while we wait."""
    write_owner(tmp_path, job="17 (ab)")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        grow_old(tmp_path, 70)

    lock = RunLock(tmp_path, environment={"POLYSCENE_JOB": "17 (ab)"})
    lock.acquire(sleep)
    assert len(waits) == 1
    lock.release()
    write_owner(tmp_path, job="17 (ab)")
    with pytest.raises(UserError, match="in use by job 17"):
        RunLock(tmp_path, environment={"POLYSCENE_JOB": "18 (cd)"}).acquire(sleep)
    assert len(waits) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_half_written_lock_grows_old(tmp_path, text):
    file = tmp_path / ".lock"
    file.write_text(text)
    with pytest.raises(UserError, match="in use by another process"):
        RunLock(tmp_path).acquire()
    grow_old(tmp_path, 70)
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()


def test_of_many_that_find_a_dead_owner_one_gets_the_lock(tmp_path):
    write_owner(tmp_path)
    grow_old(tmp_path, 1000)
    script = HOLD + "print('held', flush=True); import time; time.sleep(60)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    held, refused = [], []

    def watch(process):
        (held if process.stdout.readline() else refused).append(process)

    threads = [threading.Thread(target=watch, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for process in processes:
        process.kill()
        process.communicate()
    assert (len(held), len(refused)) == (1, 5)


def test_overwrite_spares_what_the_same_job_made(tmp_path, monkeypatch):
    """The command of a job that starts again says overwrite=true again."""
    open_run(tmp_path, {"seed": 0})
    (tmp_path / "metrics.jsonl").write_text("old")
    monkeypatch.setenv("POLYSCENE_JOB", "17 (ab)")
    assert open_run(tmp_path, {"seed": 1}, overwrite=True) == (tmp_path, False)
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "metrics.jsonl").write_text("new")
    assert open_run(tmp_path, {"seed": 1}, overwrite=True) == (tmp_path, True)
    assert (tmp_path / "metrics.jsonl").read_text() == "new"
    monkeypatch.setenv("POLYSCENE_JOB", "18 (cd)")
    assert open_run(tmp_path, {"seed": 1}, overwrite=True) == (tmp_path, False)
    assert not (tmp_path / "metrics.jsonl").exists()
