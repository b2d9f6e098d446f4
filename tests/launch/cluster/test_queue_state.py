"""What squeue prints, and what it says when it cannot."""

import os
import stat

import pytest

from polyscene.launch.cluster.queue_state import QueueUnavailable, parse_duration, parse_queue, query_queue

# As SLURM 22.05 prints them with --noheader --array --states=all --format=%i|%T|%M|%N|%r.
REAL = """\
19|PENDING|0:00||Dependency
20_0|RUNNING|1:07|n[1-2]|None
20_2|PENDING|0:00||JobArrayTaskLimit
21|COMPLETED|0:03|n1|None
22|FAILED|12:04|n2|NonZeroExitCode
23|TIMEOUT|1-00:00:12|n1|TimeLimit
24|CANCELLED|0:00||DependencyNeverSatisfied
25|COMPLETING|2:03:04|n2|None
26|PENDING|0:00||BeginTime
27|NODE_FAIL|0:41|n2|NodeDown
28|OUT_OF_MEMORY|0:09|n1|OutOfMemory
"""


def test_real_lines():
    jobs = parse_queue(REAL)
    assert len(jobs) == 11
    assert (jobs["19"].state, jobs["19"].nodes, jobs["19"].reason) == ("PENDING", "", "Dependency")
    assert (jobs["20_0"].seconds, jobs["20_0"].nodes, jobs["20_0"].reason) == (67, "n[1-2]", "")
    assert jobs["23"].seconds == 86412
    assert jobs["25"].seconds == 7384
    assert {job_id for job_id, job in jobs.items() if not job.ended} == {"19", "20_0", "20_2", "25", "26"}


def test_other_spellings_and_damage():
    jobs = parse_queue("5|CANCELLED by 1000|INVALID|(null)|(null)\n\nslurm_load_jobs: warning\n|||||\n6|RUNNING\n")
    assert list(jobs) == ["5"]
    job = jobs["5"]
    assert (job.state, job.seconds, job.nodes, job.reason, job.ended) == ("CANCELLED", None, "", "", True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00", 0), ("9:59", 599), ("1:00:00", 3600), ("2-01:00:01", 2 * 86400 + 3601), ("INVALID", None), ("", None),
     ("7", None), ("-1:00", None), ("1-2", None), ("a-1:00", None)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """``squeue(body)``: put a shell script of that name first on the path; it notes how it was called."""

    def make(body):
        script = tmp_path / "bin" / "squeue"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n{body}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return tmp_path / "calls"

    return make


def test_one_call_for_all_jobs_and_only_those_asked_for(squeue):
    calls = squeue(f"cat <<'END'\n{REAL}END")
    jobs = query_queue(["20_0", "20_1", "19", "404"])
    assert list(jobs) == ["19", "20_0"]
    (call,) = calls.read_text().splitlines()
    assert "--jobs=19,20,404" in call
    assert query_queue([]) == {}
    assert len(calls.read_text().splitlines()) == 1


def test_a_job_that_is_no_longer_known_is_no_trouble(squeue):
    squeue('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert query_queue(["17"]) == {}


def test_no_controller_no_answer_no_squeue(squeue, monkeypatch, tmp_path):
    squeue('echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    with pytest.raises(QueueUnavailable, match="Unable to contact slurm controller"):
        query_queue(["17"])
    squeue("exec sleep 5")
    with pytest.raises(QueueUnavailable, match="no answer within 0.2 s"):
        query_queue(["17"], timeout=0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueUnavailable, match="not installed"):
        query_queue(["17"])
