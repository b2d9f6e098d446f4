"""What happens when the processes of a job have left: completed, failed, or queued again.

SLURM runs this module as the last line of the batch script; `local_job` calls it. It decides by what the processes
wrote before they left, by what SLURM printed about them, and by how often this has happened before.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from polyscene.runtime.files import write_text
from polyscene.runtime.run import RunDirectory

from .job_record import JobState, State, now, read_record, read_state, write_state

_CHECKPOINT = re.compile(r"step-(\d+)\.pt")
# In the batch script's error file: what SLURM and the kernel say about memory, and srun about a process.
_MEMORY = re.compile(r"oom[-_ ]?kill|out of memory|exceeded (job |step )?memory limit|cannot allocate memory", re.I)
_VIOLENT = "Killed|Segmentation fault|Aborted|Bus error"
_NODE = re.compile(r"srun: error: (Node failure on \S+)")
_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "PREEMPTED")
_ATTEMPT = "polyscene: attempt "  # the batch script prints this before its processes start

Kind = Literal["completed", "refused", "crashed", "stopped", "cancelled"]


@dataclass(frozen=True)
class Outcome:
    """How one process of a job left.

    Attributes:
        kind: ``refused`` is bad input or a run that cannot go on, which no restart mends; ``stopped``, asked to leave
            and come back; ``cancelled``, asked to leave.
        message: one line about it, or empty.
        exit_code: of the process.
    """

    kind: Kind
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Place:
    """Where one attempt of a job leaves its notes.

    Attributes:
        logs: folder of what the job prints.
        job_id: its number.
        attempt: 0 for the first start.
    """

    logs: Path
    job_id: str
    attempt: int

    @property
    def rendezvous(self) -> Path:
        """Where rank 0 writes how it is reached."""
        return self.logs / f"{self.job_id}.{self.attempt}_rendezvous.json"

    def outcome(self, rank: int) -> Path:
        """Where a process writes how it left."""
        return self.logs / f"{self.job_id}.{self.attempt}_{rank}_outcome.json"


@dataclass(frozen=True)
class Decision:
    """What becomes of a job.

    Attributes:
        state: to be written.
        message: why, one line; empty for a completed job.
        failures: crashes and stops without progress, this attempt included.
    """

    state: State
    message: str
    failures: int


def write_outcome(place: Place, rank: int, outcome: Outcome) -> None:
    """Note how this process left."""
    write_text(place.outcome(rank), json.dumps(asdict(outcome)) + "\n")


def read_outcomes(place: Place) -> dict[int, Outcome]:
    """Rank -> how it left, of the processes that could still say so."""
    found = {}
    for file in place.logs.glob(f"{place.job_id}.{place.attempt}_*_outcome.json"):
        try:
            found[int(file.name.split("_")[-2])] = Outcome(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
    return dict(sorted(found.items()))


def saved_progress(run: Path) -> int:
    """Steps in the newest checkpoints of a run and of its seeds, added up; only their comparison means something."""
    total = 0
    for folder in (run, *run.glob("seed-*")):
        steps = [int(m[1]) for f in folder.glob("checkpoints/step-*.pt") if (m := _CHECKPOINT.fullmatch(f.name))]
        # A seed that is done counts for more than one that was only begun.
        total += max(steps, default=0) + (folder / "results.json").exists()
    return total


def decide(
    outcomes: Mapping[int, Outcome],
    exit_code: int,
    printed: str,
    *,
    failures: int,
    progress: bool,
    max_requeues: int,
    job_state: str = "RUNNING",
) -> Decision:
    """Judge one attempt of a job.

    Args:
        outcomes: rank -> how it left; missing for a process that was killed.
        exit_code: of the launcher of the processes.
        printed: the launcher's and the system's messages during this attempt.
        failures: of the attempts before.
        progress: whether a newer checkpoint exists than at the start of this attempt.
        max_requeues: failures after which the job is started once more at most.
        job_state: SLURM's word for the job's state; empty if it is not known.
    """
    kinds = {outcome.kind for outcome in outcomes.values()}
    refusal = next((o.message for o in outcomes.values() if o.kind == "refused"), None)
    if refusal is not None:
        return Decision("failed", refusal, failures)
    # Rank 0 wrote the results; what happened to processes on their way out does not matter.
    if kinds == {"completed"} and 0 in outcomes:
        return Decision("completed", "", failures)
    if job_state in _QUEUED:
        return Decision("requeued", "SLURM queued the job again", failures)
    if job_state not in ("RUNNING", ""):
        return Decision("stopped", f"the job was ended: {job_state.lower().replace('_', ' ')}", failures)
    if _MEMORY.search(printed):
        return Decision("failed", "killed because it used more memory than the job has; raise memory", failures + 1)
    # When a process dies, srun ends the others with SIGTERM; who wants the job to leave begins with SIGUSR2.
    died = _death(printed) is not None and "stopped" not in kinds
    if kinds & {"stopped", "cancelled"} and not died:
        reason = next((o.message for o in outcomes.values() if o.message), "") or "asked to stop"
        if progress:
            return Decision("requeued", f"{reason}: saved and queued again", failures)
        said = f"{reason}: stopped before anything was saved"
    else:
        said = _reason(outcomes, exit_code, printed)
    if failures >= max_requeues:
        return Decision("failed", f"{said}; not started again after {failures + 1} failures", failures + 1)
    return Decision("requeued", f"{said}; queued again ({failures + 1} of {max_requeues})", failures + 1)


def conclude(run: Path, place: Place, exit_code: int, printed: str, *, max_requeues: int, job_state: str) -> Decision:
    """Judge an attempt, and write the verdict to job_state.json and to the run's log."""
    before = read_state(run)
    if before is None or (before.job_id, before.attempt) != (place.job_id, place.attempt):
        # Rank 0 never got as far as announcing itself.
        failures = before.failures if before is not None and before.job_id == place.job_id else 0
        before = JobState(state="running", job_id=place.job_id, attempt=place.attempt, failures=failures)
        before = replace(before, saved=saved_progress(run))
    decision = decide(
        read_outcomes(place),
        exit_code,
        printed,
        failures=before.failures,
        progress=saved_progress(run) > before.saved,
        max_requeues=max_requeues,
        job_state=job_state,
    )
    state = replace(before, state=decision.state, message=decision.message, failures=decision.failures, updated=now())
    write_state(run, state)
    if decision.message:
        RunDirectory(run).note(f"job {place.job_id}, attempt {place.attempt}: {decision.message}")
    for file in (place.rendezvous, *place.logs.glob(f"{place.job_id}.{place.attempt}_*_outcome.json")):
        file.unlink(missing_ok=True)
    return decision


def main(arguments: Sequence[str]) -> int:
    """``python -m polyscene.launch.cluster.job_end RUNS EXIT_CODE``, on the first node of a SLURM job.

    Args:
        arguments: a JSON file with the run directories of the job array (one for a plain job); srun's exit code.
    """
    runs, exit_code = Path(arguments[0]), int(arguments[1])
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    run = Path(json.loads(runs.read_text(encoding="utf-8"))[int(task or 0)])
    number = os.environ["SLURM_JOB_ID"]
    job_id = number if task is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    place = Place(runs.parent, job_id, int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    state, restarts = query_job(job_id)
    if restarts not in (None, place.attempt):
        return exit_code  # a node died, and SLURM has started the job elsewhere: this is the rest of an attempt
    record = read_record(run)
    decision = conclude(
        run,
        place,
        exit_code,
        last_attempt(place.logs / f"{job_id}_0_log.err"),
        max_requeues=record.max_requeues if record is not None else 0,
        job_state=state,
    )
    print(f"polyscene: {decision.state}{': ' if decision.message else ''}{decision.message}", flush=True)
    if decision.state == "requeued" and state not in _QUEUED:
        return subprocess.run(["scontrol", "requeue", job_id], check=False).returncode
    return 0 if decision.state == "completed" else exit_code or 1


def query_job(job_id: str) -> tuple[str, int | None]:
    """SLURM's word for a job's state and how often it was restarted; empty and None if it does not answer.

    Args:
        job_id: of a job, or ``ARRAY_TASK``: the bare number of an array may stand for all of its tasks.
    """
    try:
        answer = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job_id], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "", None
    fields = dict(field.partition("=")[::2] for field in answer.split())
    restarts, state = fields.get("Restarts", ""), fields.get("JobState", "")
    if state == "COMPLETING":  # it is being ended, and does not say why until it is over
        state = "TIMEOUT" if fields.get("Reason") == "TimeLimit" else "CANCELLED"
    return state, int(restarts) if restarts.isdigit() else None


def last_attempt(log: Path, size: int = 65_536) -> str:
    """What batch script, srun and rank 0 printed as errors in the last attempt; at most the last ``size`` bytes."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(_ATTEMPT)[2]


def marker(attempt: str) -> str:
    """The line that separates attempts in the error file."""
    return f"{_ATTEMPT}{attempt}"


def _reason(outcomes: Mapping[int, Outcome], exit_code: int, printed: str) -> str:
    """Why processes left without being asked: what was killed comes first, the others only lost their partner."""
    death = _death(printed) or _death(printed, "Terminated")
    crash = next((o.message for o in outcomes.values() if o.kind == "crashed"), None)
    return death or crash or f"its processes ended with status {exit_code} and said nothing"


def _death(printed: str, how: str = _VIOLENT) -> str | None:
    """The node that failed, or the process that a signal ended (``how``: regular expression), as srun names them."""
    node = _NODE.search(printed)
    if node:
        return node[1]
    found = re.search(rf"(?:srun|local_job): error: (\S+): tasks? ([\d,\-]+): ({how})", printed)
    return f"process {found[2]} on {found[1]}: {found[3].lower()}" if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
