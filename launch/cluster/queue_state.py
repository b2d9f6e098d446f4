"""What SLURM's queue says about jobs: one call of ``squeue``, which needs no accounting."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

# Fields of a line, in this order: job, state, time used, nodes, reason. None of them holds the separator.
_FORMAT = "%i|%T|%M|%N|%r"
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class QueueUnavailable(Exception):
    """``squeue`` is absent or got no answer; the message says so in a few words."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job as the controller knows it; ended jobs stay known for some minutes.

    Attributes:
        job_id: ``17``, or ``17_3`` for a task of an array.
        state: SLURM's word, such as ``PENDING``, ``RUNNING`` or ``TIMEOUT``.
        seconds: time used in this attempt, or None where SLURM does not say.
        nodes: as SLURM writes them (``n[1-2]``), empty before the start.
        reason: why it waits or why it ended, SLURM's word; empty for none.
    """

    job_id: str
    state: str
    seconds: int | None
    nodes: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether it is over; a job that will start again is not."""
        return self.state in _ENDED


def query_queue(job_ids: Iterable[str], timeout: float = 60) -> dict[str, QueuedJob]:
    """Ask the controller about jobs, all at once.

    Args:
        job_ids: jobs, or tasks of arrays.
        timeout: seconds to wait for an answer.

    Returns:
        Job id -> job, of those that are still known: jobs of other submissions are left out, and so are tasks of a
        named array that were not asked for.

    Raises:
        QueueUnavailable: no ``squeue``, or no controller that answers.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    numbers = sorted({job.partition("_")[0] for job in wanted})
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--format={_FORMAT}",
        f"--jobs={','.join(numbers)}",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise QueueUnavailable("squeue is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnavailable(f"squeue gave no answer within {timeout:g} s") from error
    if answer.returncode:
        # A single job that is no longer known is an error to squeue; one among several is left out.
        if "Invalid job id" in answer.stderr:
            return {}
        said = answer.stderr.strip().splitlines()
        raise QueueUnavailable(said[-1] if said else f"squeue ended with status {answer.returncode}")
    return {job_id: job for job_id, job in parse_queue(answer.stdout).items() if job_id in wanted}


def parse_queue(text: str) -> dict[str, QueuedJob]:
    """Lines that ``squeue`` printed in our format -> jobs; other lines are skipped."""
    jobs = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != _FORMAT.count("|") + 1 or not fields[0]:
            continue
        job_id, state, used, nodes, reason = fields
        # "CANCELLED by 1000" and "CANCELLED+" are spellings of one state.
        state = state.split()[0].rstrip("+") if state else "UNKNOWN"
        jobs[job_id] = QueuedJob(
            job_id=job_id,
            state=state,
            seconds=parse_duration(used),
            nodes="" if nodes in ("(null)", "N/A") else nodes,
            reason="" if reason in ("None", "(null)") else reason,
        )
    return jobs


def parse_duration(text: str) -> int | None:
    """SLURM's ``[days-]hours:minutes:seconds``, with hours or more left out where they are 0 -> seconds."""
    days, separator, clock = text.rpartition("-")
    parts = clock.split(":")
    if not 2 <= len(parts) <= 3 or not all(part.isdigit() for part in parts) or (separator and not days.isdigit()):
        return None  # INVALID, N/A
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return seconds + 86400 * int(days or 0)
