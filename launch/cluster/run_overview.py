"""A run in one row: its state, place, time and progress, from SLURM's queue and its directory."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from polyscene.runtime.errors import UserError
from polyscene.runtime.run import read_run_config
from polyscene.runtime.run_lock import live_owner

from .job_logs import last_error
from .job_record import CODE_FOLDER, JOBS_FOLDER, RECORD_FILE, JobRecord, JobState, read_record, read_state
from .local_process import process_alive
from .progress import Progress, read_progress, saved_metadata
from .queue_state import QueuedJob, QueueUnavailable, query_queue

# SLURM's words -> ours.
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDS = {
    "CANCELLED": "cancelled",
    "DEADLINE": "timed out",
    "TIMEOUT": "timed out",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "PREEMPTED": "preempted",
    "REVOKED": "cancelled",
}
# Folders of a run, or of data, that hold no runs.
_NOT_SEARCHED = {CODE_FOLDER, JOBS_FOLDER, "checkpoints", "pictures", "tensorboard", "predictions", "__pycache__"}
LIVE = ("pending", "requeued", "running")
_LOG_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True, kw_only=True)
class RunOverview:
    """One run.

    Attributes:
        path: the run directory.
        state: one word or two: ``pending``, ``running``, ``requeued`` (waits to start again), ``completed``,
            ``failed``, ``stopped``, ``cancelled``, ``timed out``, ``out of memory``, ``node failed``, ``preempted``,
            ``died`` (gone without a word), or one of these with a question mark where SLURM cannot be asked.
        reason: why SLURM lets it wait, or empty.
        nodes: where it runs or last ran.
        seconds: time of the current or last attempt; None before it started.
        progress: steps done and left.
        error: last error, one line, or empty.
        record: its submission; None for a run that was started by hand.
    """

    path: Path
    state: str
    reason: str
    nodes: str
    seconds: float | None
    progress: Progress
    error: str
    record: JobRecord | None

    @property
    def live(self) -> bool:
        """Whether its job runs or will run."""
        return self.state.rstrip("?") in LIVE


def find_all_runs(folder: Path) -> list[Path]:
    """Run directories at or below ``folder``, submitted or started by hand, sorted.

    The single runs of a training with several seeds belong to it and are not listed.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' does not exist; name a folder that holds runs")
    found = []
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if RECORD_FILE in files or _is_plain_run(files):
            found.append(path)
            folders[:] = [f for f in folders if not _is_seed_of(path, f)]
        folders[:] = sorted(f for f in folders if f not in _NOT_SEARCHED and not f.startswith("."))
    return sorted(found)


def describe_runs(paths: Sequence[Path]) -> tuple[list[RunOverview], str | None]:
    """The rows of some runs, with one question to SLURM for all of them.

    Returns:
        The rows, and why SLURM could not be asked where that leaves a state open; None otherwise.
    """
    submissions = [(read_record(path), read_state(path)) for path in paths]
    asked, open_ids = [], []
    for record, state in submissions:
        if record is None or record.executor != "slurm" or _said(record, state) == "completed":
            continue
        asked.append(record.job_id)
        # Jobs that failed are asked about too, since they may have been requeued, but their state is not open.
        if _said(record, state) not in ("failed", "stopped"):
            open_ids.append(record.job_id)
    warning = None
    queue: Mapping[str, QueuedJob] | None
    try:
        queue = query_queue(asked)
    except QueueUnavailable as error:
        queue = None
        warning = f"SLURM cannot be asked ({error}); states come from the run directories" if open_ids else None
    rows = [_describe(path, record, state, queue) for path, (record, state) in zip(paths, submissions)]
    return rows, warning


def describe_run(path: Path) -> RunOverview:
    """The row of one run."""
    return describe_runs([path])[0][0]


def is_finished(path: Path, progress: Progress) -> bool:
    """Whether a run directory holds results, or the backbone of all the steps that were logged."""
    if (path / "results.json").is_file():
        return True
    step = saved_metadata(path / "backbone.safetensors").get("step", "")
    return step.isdigit() and int(step) >= (progress.step or 0)


def _describe(
    path: Path, record: JobRecord | None, state: JobState | None, queue: Mapping[str, QueuedJob] | None
) -> RunOverview:
    progress = read_progress(path)
    if record is None or record.executor == "debug":  # a job of the process that submitted it, which says nothing
        return _describe_plain(path, progress, record)
    own = state if state is not None and state.job_id in ("", record.job_id) else None
    queued = queue.get(record.job_id) if queue is not None else None
    if record.executor == "slurm":
        word = _slurm_state(own, queued, known=queue is not None)
    else:
        word = _local_state(own, record)
    if word.rstrip("?") not in (*LIVE, "completed") and _went_on(path, record, own, progress):
        return _describe_plain(path, progress, record)
    error = ""
    if word not in ("completed", "pending"):
        # A job that ended without a last word has left the message of an earlier attempt.
        message = own.message if own is not None and (own.state != "running" or word in LIVE) else ""
        error = message or last_error(record)
    return RunOverview(
        path=path,
        state=word,
        reason=queued.reason if queued is not None and word in ("pending", "requeued") else "",
        nodes=(queued.nodes if queued is not None else "") or _join_nodes(own.nodes if own is not None else ()),
        seconds=_job_seconds(own, queued, word),
        progress=progress,
        error=error,
        record=record,
    )


def _said(record: JobRecord, state: JobState | None) -> str:
    """What the job last said about itself; empty for nothing, or for the words of an earlier submission."""
    return state.state if state is not None and state.job_id in ("", record.job_id) else ""


def _slurm_state(own: JobState | None, queued: QueuedJob | None, known: bool) -> str:
    said = own.state if own is not None else ""
    if queued is not None and not queued.ended:
        if queued.state not in _WAITING:
            return "running"
        return "requeued" if said else "pending"
    if said in ("completed", "failed", "stopped"):
        # The queue may know better why a job ended that had no time to say so.
        return "cancelled" if said == "stopped" and queued is not None and queued.state == "CANCELLED" else said
    if queued is not None:
        return _ENDS.get(queued.state, "completed" if queued.state == "COMPLETED" else "failed")
    if known:
        return "died" if said else "cancelled"  # gone from the queue; one that never started was taken out of it
    return f"{said or 'pending'}?"


def _local_state(own: JobState | None, record: JobRecord) -> str:
    if own is not None and own.state in ("completed", "failed", "stopped"):
        return own.state
    if own is not None and own.nodes and socket.gethostname() not in own.nodes:
        return f"{own.state}?"  # the process belongs to another machine
    number = int(record.job_id) if record.job_id.isdigit() else None
    return "running" if number is not None and process_alive(number, _timestamp(record.submitted)) else "died"


def _went_on(path: Path, record: JobRecord, own: JobState | None, progress: Progress) -> bool:
    """Whether the run was continued or finished by hand after its job had ended."""
    owner = live_owner(path)
    if owner is not None and not owner.job:
        return True
    if not is_finished(path, progress):
        return False
    ended = _timestamp(own.updated if own is not None else "") or _timestamp(record.submitted) or 0.0
    results = (path / name for name in ("results.json", "backbone.safetensors"))
    return max((file.stat().st_mtime for file in results if file.is_file()), default=0.0) > ended


def _job_seconds(own: JobState | None, queued: QueuedJob | None, word: str) -> float | None:
    if queued is not None and queued.seconds and word not in ("pending", "requeued"):
        return queued.seconds
    started = _timestamp(own.started) if own is not None else None
    if started is None or own is None:
        return None
    ended = time.time() if word.rstrip("?") == "running" else _timestamp(own.updated)
    return None if ended is None else max(0.0, ended - started)


# ---------------------------------------------------------------------------------------------- runs without a job


def _describe_plain(path: Path, progress: Progress, record: JobRecord | None) -> RunOverview:
    owner = live_owner(path)
    if owner is not None:
        state = "running"
    else:
        state = "completed" if is_finished(path, progress) else "stopped"
    first, last = _log_times(path / "log.txt")
    ended = time.time() if state == "running" else last
    return RunOverview(
        path=path,
        state=state,
        reason="",
        nodes=owner.machine if owner is not None else "",
        seconds=None if first is None or ended is None else max(0.0, ended - first),
        progress=progress,
        error="",
        record=record,
    )


def _is_plain_run(files: Sequence[str]) -> bool:
    return "config.yaml" in files and any(name in files for name in ("metrics.jsonl", "results.json", "log.txt"))


def _is_seed_of(run: Path, folder: str) -> bool:
    if not folder.startswith("seed-"):
        return False
    try:
        return isinstance(read_run_config(run).get("seeds"), list)
    except (UserError, RecursionError):
        return False


def _log_times(path: Path) -> tuple[float | None, float | None]:
    """First and last time of a log, in seconds since 1970."""
    try:
        with open(path, "rb") as file:
            head = file.read(200).decode("utf-8", errors="replace")
        end = path.stat().st_mtime
    except OSError:
        return None, None
    found = _LOG_TIME.match(head)
    return (time.mktime(time.strptime(found[0], "%Y-%m-%d %H:%M:%S")) if found else None), end


def _join_nodes(nodes: Sequence[str], most: int = 3) -> str:
    named = list(dict.fromkeys(nodes))
    return ",".join(named[:most]) + (f",+{len(named) - most}" if len(named) > most else "")


def _timestamp(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
