"""What is known about a submitted run: ``job.json``, written at submission, ``job_state.json``, by the job."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from polyscene.runtime.files import write_text

RECORD_FILE = "job.json"
STATE_FILE = "job_state.json"
JOBS_FOLDER = "jobs"
CODE_FOLDER = "code"

# Folders of a run that hold no runs.
_NO_RUNS = {
    CODE_FOLDER,
    JOBS_FOLDER,
    "checkpoints",
    "pictures",
    "tensorboard",
    "predictions",
    "results",
    "results_random",
    "scores",
}

Executor = Literal["slurm", "local", "debug"]
State = Literal["running", "requeued", "completed", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A run as it was submitted.

    Attributes:
        run: the run directory; not stored, it is where the file lies.
        job_id: SLURM's number (``17``; ``17_3`` for a task of an array), or the process number of a local job.
        executor: who runs it.
        name: of the job.
        command: the command line without ``polyscene``: ``["pretrain", "CONFIG", "out=...", ...]``.
        submitted: ISO time with zone.
        cluster: the resolved cluster config.
        logs: folder of what the job prints.
        max_requeues: how often the job may start again.
    """

    run: Path
    job_id: str
    executor: Executor
    name: str
    command: list[str]
    submitted: str
    cluster: dict[str, Any]
    logs: str
    max_requeues: int


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How far a job came, in the job's own words.

    Attributes:
        state: ``stopped`` means asked to stop and not requeued; ``requeued``, that it waits to start again.
        job_id: of the job that writes.
        attempt: 0 for the first start, then one more for each start after a requeue.
        nodes: that it runs, or last ran, on.
        started: ISO time of the start of this attempt.
        updated: ISO time of the last change.
        message: the last error or remark, one line, or empty.
        failures: crashes, and stops without progress, so far; more than ``max_requeues`` end the job.
        saved: how much was saved when this attempt started, see :func:`.job_end.saved_progress`.
    """

    state: State
    job_id: str = ""
    attempt: int = 0
    nodes: list[str] = field(default_factory=list)
    started: str = ""
    updated: str = ""
    message: str = ""
    failures: int = 0
    saved: int = 0


def now() -> str:
    """The time as ISO text with the zone, to the second."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")


def write_record(run: Path, record: JobRecord) -> None:
    """Put ``job.json`` into a run directory, whole or not at all."""
    values = {k: v for k, v in dataclasses.asdict(record).items() if k != "run"}
    write_text(run / RECORD_FILE, json.dumps(values, indent=1) + "\n")


def read_record(run: Path) -> JobRecord | None:
    """The submission of a run; None if it was not submitted, or the file is damaged."""
    return _read(JobRecord, run / RECORD_FILE, run=Path(run))


def write_state(run: Path, state: JobState) -> None:
    """Put ``job_state.json`` into a run directory, whole or not at all."""
    write_text(run / STATE_FILE, json.dumps(dataclasses.asdict(state), indent=1) + "\n")


def read_state(run: Path) -> JobState | None:
    """What the job last said; None if it never started, or the file is damaged."""
    return _read(JobState, run / STATE_FILE)


def find_runs(folder: Path) -> list[Path]:
    """Run directories at or below ``folder`` that were submitted (have a ``job.json``), sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        if RECORD_FILE in files:
            found.append(Path(place))
        folders[:] = [f for f in folders if f not in _NO_RUNS and not f.startswith(".")]
    return sorted(found)


Record = TypeVar("Record", JobRecord, JobState)


def _read(kind: type[Record], path: Path, **known: Any) -> Record | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {f.name for f in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in values.items() if k in names}, **known)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
