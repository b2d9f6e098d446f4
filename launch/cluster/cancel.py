"""Ending jobs: ``scancel``, or a signal to the process of a local job."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.run_lock import Owner, live_owner

from .job_record import JobRecord, JobState, now, read_state, write_state
from .local_process import interrupt
from .run_overview import describe_run

CANCELLED = "cancelled by polyscene jobs --cancel"


def cancel_run(path: Path) -> str:
    """End the job of a run, whether it waits or runs; returns a line that says what was done.

    A job that runs finishes its step and saves, if SLURM gives it the time, so that the run can be continued.

    Raises:
        UserError: no job, or one that has ended.
        RunFailed: SLURM refused.
    """
    overview = describe_run(path)
    record = overview.record
    owner = live_owner(path)
    if record is None or (owner is not None and not owner.job):
        return _cancel_plain(path, owner)
    if not overview.live:
        raise UserError(f"'{path}' has no job that could be cancelled: {record.job_id} is {overview.state}")
    if record.executor == "slurm":
        cancel_slurm([record.job_id])
        # A job that waits cannot say itself how it ended.
        if overview.state.rstrip("?") != "running":
            _note(path, record)
    elif not interrupt(int(record.job_id)):
        raise UserError(f"'{path}' has no job that could be cancelled: process {record.job_id} is gone")
    return f"'{path}': job {record.job_id} was {overview.state} and is being cancelled"


def cancel_slurm(job_ids: list[str]) -> None:
    """Take jobs out of SLURM's queue; those that have ended are no error.

    Raises:
        RunFailed: no ``scancel``, or the controller refused.
    """
    if not job_ids:
        return
    try:
        answer = subprocess.run(["scancel", *job_ids], capture_output=True, text=True, timeout=120, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"cannot cancel {', '.join(job_ids)}: scancel is absent or gives no answer") from error
    trouble = [line for line in answer.stderr.splitlines() if "Invalid job id" not in line and "already" not in line]
    if answer.returncode and trouble:
        raise RunFailed(f"cannot cancel {', '.join(job_ids)}: {trouble[-1]}")


def _cancel_plain(path: Path, owner: Owner | None) -> str:
    """Ask a run that was started by hand to stop."""
    if owner is None:
        raise UserError(f"'{path}' has no job, and no process works in it")
    if owner.machine != socket.gethostname():
        raise UserError(f"'{path}' is in the hands of {owner}; stop it there")
    interrupt(owner.pid)
    return f"'{path}': {owner} is asked to save and stop"


def _note(path: Path, record: JobRecord) -> None:
    before = read_state(path)
    known = before if before is not None and before.job_id == record.job_id else JobState(state="stopped")
    write_state(path, replace(known, state="stopped", job_id=record.job_id, updated=now(), message=CANCELLED))
