"""The line that says why a job failed."""

from pathlib import Path

import pytest

from polyscene.launch.cluster.job_logs import error_line, job_files, last_error
from polyscene.launch.cluster.job_record import JobRecord

TRACEBACK = """\
Traceback (most recent call last):
  File "engine.py", line 3, in step
    raise ValueError("no batch")
ValueError: no batch
"""


@pytest.fixture
def record(tmp_path):
    return JobRecord(
        run=tmp_path,
        job_id="17_3",
        executor="slurm",
        name="a",
        command=["pretrain", "x"],
        submitted="2026-11-21T17:00:00+00:00",
        cluster={},
        logs=str(tmp_path / "jobs"),
        max_requeues=3,
    )


def write(record, name, text):
    path = Path(record.logs) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("step 1\nerror: loss is nan at step 12; lower optim.lr\n", "loss is nan at step 12; lower optim.lr"),
        (TRACEBACK, "ValueError: no batch"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried\n", "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        (
            "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-11-21T17:00:00 DUE TO TIME LIMIT ***\n"
            "srun: error: n1: task 0: Terminated\n",
            "STEP 5.0 ON n1 CANCELLED AT 2026-11-21T17:00:00 DUE TO TIME LIMIT",
        ),
        (
            "slurmstepd-n1: error: Detected 1 oom_kill event in StepId=9.0.\n",
            "Detected 1 oom_kill event in StepId=9.0.",
        ),
        ("srun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (f"{TRACEBACK}error: bad key\nsrun: error: n1: task 0: Exited with exit code 2\n", "bad key"),
        ("2026-11-21 17:00:00 error: with the time\n", "with the time"),
        ("epoch 1.00  step 3/9\nthe error: was small\nDeprecationWarnings: none\n", ""),
        ("polyscene: attempt 0\nerror: of the first attempt\npolyscene: attempt 1\nsrun: error: n1: a\n", "n1: a"),
        ("", ""),
    ],
)
def test_which_line_it_is(text, found):
    assert error_line(text.splitlines())[1] == found


def test_the_cause_and_not_what_it_did_to_other_processes(record):
    write(record, "17_3_0_log.err", "RuntimeError: [gloo/tcp] Connection closed by peer [127.0.0.1]:123\n")
    write(record, "17_3_1_log.err", TRACEBACK)
    assert last_error(record) == "ValueError: no batch"


def test_files_by_rank_and_only_of_this_job(record):
    assert job_files(record) == []
    assert last_error(record) == ""
    for name in ("17_3_1_log.out", "17_3_0_log.out", "17_3_0_log.err", "17_30_0_log.err", "17_3_10_log.err"):
        write(record, name, "")
    write(record, "17_3_submitted.pkl", "")
    assert [f.name for f in job_files(record)] == [
        "17_3_0_log.err", "17_3_0_log.out", "17_3_1_log.out", "17_3_10_log.err",
    ]  # fmt: skip
    assert [f.name for f in job_files(record, rank=1)] == ["17_3_1_log.out"]
