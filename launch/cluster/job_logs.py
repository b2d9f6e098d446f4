"""What a job printed: where the files are, and the line in them that says why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .job_end import marker
from .job_record import JobRecord
from .progress import read_tail

_RANK = re.compile(r"_(\d+)_log\.(?:out|err)")
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Failed|Warning|Exit)\b(?:: .*)?$")
_LEVEL = re.compile(r"^(?:slurmstepd(?:-\S+)?|srun|sbatch|slurm_\w+): (?:error|fatal): (.*)")
# What the other processes of a run say when one of them died: an effect, never the cause.
_EFFECTS = (
    "closed by peer",
    "Broken pipe",
    "Connection reset",
    "NCCL",
    "DistBackendError",
    "heartbeat",
    "Gloo connect",
)
_ENDS = (" DUE TO ", "oom", "OOM", "Out Of Memory", "memory limit")


def job_files(record: JobRecord, rank: int | None = None) -> list[Path]:
    """What a job's processes printed, by rank, errors first; all ranks or one."""
    found = []
    for path in Path(record.logs).glob(f"{record.job_id}_*_log.*"):
        match = _RANK.fullmatch(path.name.removeprefix(record.job_id))
        if match and (rank is None or int(match[1]) == rank):
            found.append((int(match[1]), path.suffix != ".err", path))
    return [path for *_, path in sorted(found)]


def last_error(record: JobRecord) -> str:
    """The line that best says why a job failed, from what all of its processes printed; empty without one.

    Our own ``error:`` lines come before the words of SLURM about an ended job (time limit, memory), these before
    exceptions, and what a process says about the death of another comes last.
    """
    best: tuple[int, str] = (0, "")
    for path in job_files(record):
        weight, line = error_line(read_tail(path))
        if weight > best[0]:
            best = weight, line
    return best[1]


def error_line(lines: Iterable[str]) -> tuple[int, str]:
    """The last line of the weightiest kind of error of the last attempt, with its weight; ``(0, "")`` without one."""
    best: tuple[int, str] = (0, "")
    for raw in lines:
        line = _TIME.sub("", raw.strip())
        if line.startswith(marker("")):
            best = 0, ""
        weight, text = _weigh(line)
        if weight and weight >= best[0]:
            best = weight, text
    return best


def _weigh(line: str) -> tuple[int, str]:
    if line.startswith("error: "):
        return 5, line.removeprefix("error: ")
    said = _LEVEL.match(line)
    if said:
        text = said[1].strip("* ")
        return (4, text) if any(mark in text for mark in _ENDS) else (1, text)
    if _EXCEPTION.match(line):
        return (2, line) if any(mark in line for mark in _EFFECTS) else (3, line)
    return 0, ""
