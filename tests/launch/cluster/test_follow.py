"""Logs that grow."""

import threading
import time
from pathlib import Path

from polyscene.launch.cluster.follow import GrowingFile, OnceOnly, follow
from polyscene.runtime.run_lock import RunLock


def test_whole_lines_only_and_files_that_are_made_anew(tmp_path):
    path = tmp_path / "log"
    file = GrowingFile(path)
    assert file.new_lines() == []
    path.write_bytes(b"one\ntw")
    assert file.new_lines() == ["one"]
    with open(path, "ab") as out:
        out.write("o\nbar 1%\rbar 2%\r\nz\u00fc".encode()[:-1])
    assert file.new_lines() == ["two", "bar 2%"]
    with open(path, "ab") as out:
        out.write("\u00fc".encode()[1:] + b"g\n")
    assert file.new_lines() == ["z\u00fcg"]
    path.write_bytes(b"new\n")
    assert file.new_lines() == ["new"]
    assert file.rest() == ""


def test_a_line_that_is_printed_and_noted_is_shown_once():
    once = OnceOnly()
    err, log = Path("err"), Path("log.txt")
    assert once(err, "step 1")
    assert not once(log, "2026-11-21 17:00:00 step 1")
    assert once(log, "2026-11-21 17:00:01 only noted")
    assert not once(err, "only noted")
    # What is printed twice is shown twice.
    assert [once(err, "step 2"), once(err, "step 2")] == [True, True]
    assert [once(log, "step 2"), once(log, "step 2"), once(log, "step 2")] == [False, False, True]


def test_until_the_run_ends(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 3")
    log = tmp_path / "log.txt"
    log.write_text("".join(f"2026-11-21 17:00:00 old {i}\n" for i in range(100)))
    lock = RunLock(tmp_path)
    lock.acquire()

    def work():
        for i in range(3):
            time.sleep(0.1)
            with open(log, "a") as file:
                file.write(f"2026-11-21 17:00:01 new {i}\n")
        (tmp_path / "results.json").write_text("{}")
        lock.release()

    shown = []
    worker = threading.Thread(target=work)
    worker.start()
    last = follow(tmp_path, shown.append, poll_seconds=0.05)
    worker.join()
    assert last.state == "completed"
    assert [line.split(" ", 2)[2] for line in shown] == [
        *(f"old {i}" for i in range(80, 100)),
        "new 0",
        "new 1",
        "new 2",
    ]
