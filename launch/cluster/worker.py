"""What every process of a job runs: one command, within the signals, ranks and files of a cluster.

Submitit starts it and knows the ranks. Its own way to requeue is not used: it counts every stop within the last ten
minutes of a job as "timed out", which all stops of a short job are, and leaves from within the signal handler, before
the step is finished and saved. Here the handler only takes a note; the training loop stops and saves, and `job_end`
queues the job again once all processes have left.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from polyscene.launch.full_gpu import full_gpu_in_one_line
from polyscene.runtime import job_variables
from polyscene.runtime.errors import UserError
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run_lock import run_locks

from .job_end import Outcome, Place, saved_progress, write_outcome
from .job_record import JobState, now, read_state, write_state
from .snapshot import check_snapshot

_LEFT = 75  # exit code of a process that could not finish its step in time


@dataclass(frozen=True, kw_only=True)
class Job:
    """The callable that submitit stores for a run and calls in each of its processes.

    Attributes:
        run: the run directory, absolute.
        logs: folder of what the job prints.
        words: the command line without ``polyscene``.
        token: of the submission; with the job's number it is the job's name for `run_lock`.
        code: the snapshot that must be what runs, or None.
        gpus: whether every process was promised a GPU.
        grace: seconds that a signal leaves to finish a step.
    """

    run: str
    logs: str
    words: tuple[str, ...]
    token: str
    code: str | None
    gpus: bool
    grace: float

    def __call__(self) -> int:
        """Run the command; ends the process with the exit code if it is not 0.

        Raises:
            SystemExit: the command failed, or was stopped by SIGTERM.
        """
        from submitit import JobEnvironment

        environment = JobEnvironment()
        place = Place(Path(self.logs), environment.job_id, current_attempt())
        rank = environment.global_rank
        remove_leftovers(place, rank)
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(environment.num_tasks),
            LOCAL_RANK=str(environment.local_rank),
        )
        os.environ[job_variables.RENDEZVOUS] = str(place.rendezvous)
        os.environ[job_variables.JOB] = f"{environment.job_id} ({self.token[:8]})"
        if rank == 0:
            announce(Path(self.run), place, list(environment.hostnames))
        with StopRequest() as stop, leave_in_time(stop, place, rank, self.grace):
            outcome = run_command(self, stop)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # on the way out there is nothing to stop any more
        write_outcome(place, rank, outcome)
        if outcome.exit_code:
            sys.stdout.flush()
            sys.exit(outcome.exit_code)
        return 0


def current_attempt() -> int:
    """How often the job was started before, according to SLURM or to `local_job`."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get(job_variables.ATTEMPT) or 0)


def announce(run: Path, place: Place, nodes: Sequence[str]) -> None:
    """Write that the job runs, to be done by rank 0."""
    before = read_state(run)
    time_now = now()
    state = JobState(
        state="running",
        job_id=place.job_id,
        attempt=place.attempt,
        nodes=list(nodes),
        started=time_now,
        updated=time_now,
        saved=saved_progress(run),
    )
    if before is not None and before.job_id == place.job_id:
        state = replace(state, message=before.message, failures=before.failures)
    write_state(run, state)


def run_command(job: Job, stop: StopRequest) -> Outcome:
    """Run the command of a job in this process; what ends it becomes an outcome, and is printed."""
    try:
        if job.code is not None:
            check_snapshot(Path(job.code))
        if job.gpus:
            _check_gpu()
        from polyscene.launch.cli import app

        with run_locks(), full_gpu_in_one_line():
            code = app(args=list(job.words), prog_name="polyscene", standalone_mode=False)
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        return Outcome("refused", line, error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong option; click, or the copy of it that typer may carry along
            line = " ".join(error.format_message().split())
            print(f"error: {line}", file=sys.stderr)
            return Outcome("refused", line, 2)
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        return Outcome("crashed", f"{type(error).__name__}: {reason}", 1)
    if not code:
        return Outcome("completed")
    # Commands return something else than 0 only when they were asked to stop, maybe through another process.
    return Outcome("cancelled" if stop.signal in (signal.SIGTERM, signal.SIGINT) else "stopped", _signal_name(stop))


@contextmanager
def leave_in_time(stop: StopRequest, place: Place, rank: int, grace: float) -> Iterator[None]:
    """Leave without a word of the command if a signal came and the step is not finished within ``grace`` seconds.

    A process that is not within a training loop has nothing to save. After SIGTERM, which leaves little time, it goes
    at once; SIGUSR2 comes early enough to see whether it comes to its end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if stop.signal is not None:  # it came a moment ago
        os.write(writer, bytes([stop.signal]))
    # Signals that processes started from this one get are their own business.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    ended = threading.Event()

    def leave(number: int) -> None:
        kind = "cancelled" if number == signal.SIGTERM else "stopped"
        name = signal.Signals(number).name
        print(f"{name}: no step was finished in time; leaving without saving", file=sys.stderr, flush=True)
        write_outcome(place, rank, Outcome(kind, f"{name}, outside of a step", _LEFT))
        os._exit(_LEFT)

    thread = threading.Thread(target=_watch, args=(reader, stop, grace, ended, leave), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


def remove_leftovers(place: Place, rank: int) -> None:
    """Remove what an earlier, killed attempt may have left half-written, at which submitit would stumble."""
    for half in place.logs.glob(f"{place.job_id}_{rank}_result.pkl*"):
        half.unlink(missing_ok=True)


def _watch(reader: int, stop: StopRequest, grace: float, ended: threading.Event, leave: Callable[[int], None]) -> None:
    number = 0
    while not ended.is_set() and not number:
        number = next((b for b in os.read(reader, 64) if b in (signal.SIGTERM, signal.SIGUSR2)), 0)
    polled = stop.polled
    end = time.monotonic() + (grace if polled or number == signal.SIGUSR2 else 0.0)
    while not ended.is_set():
        left = end - time.monotonic()
        if left <= 0:
            leave(number)
            return
        ended.wait(left)


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "the cluster file promises a GPU to every process, and none is visible here; check gpus_per_node and the "
            "partition, or the driver of this node"
        )


def _signal_name(stop: StopRequest) -> str:
    return "" if stop.signal is None else stop.signal.name
