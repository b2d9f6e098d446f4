"""A job on this machine, without SLURM: starts the processes of one run, watches them, and starts them again.

Submitit's own controller starts a job six times at most, waits for ever for the partners of a process that was killed,
and ends with the terminal; so this one is used, with submitit's files and variables.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from polyscene.runtime import job_variables

from .job_end import Decision, Place, conclude, last_attempt, marker

_POLL = 0.1  # seconds


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """What a local job needs to know.

    Attributes:
        run: the run directory.
        logs: submitit's folder.
        tasks: processes.
        seconds: time limit of an attempt.
        warning: seconds before it at which the processes are told to save.
        max_requeues: starts after a crash.
        slots: folder of the files that say which runs of a sweep are under way, or None.
        parallel: number of these files.
        token: of the submission.
    """

    run: str
    logs: str
    tasks: int
    seconds: float
    warning: float
    max_requeues: int
    slots: str | None
    parallel: int
    token: str


def write_plan(file: Path, plan: LocalPlan) -> None:
    """Store a plan for :func:`main`."""
    file.write_text(json.dumps(asdict(plan)))


def main(arguments: Sequence[str]) -> int:
    """``python -m polyscene.launch.cluster.local_job PLAN``: run the job to its end; the process's number is its id."""
    plan = LocalPlan(**json.loads(Path(arguments[0]).read_text()))
    job = _LocalJob(plan)
    with _slot(plan, job):
        attempt = 0
        while True:
            decision = job.run(attempt)
            if decision.state != "requeued":
                return 0 if decision.state == "completed" else 1
            attempt += 1


class _LocalJob:
    """The processes of one attempt after the other."""

    def __init__(self, plan: LocalPlan):
        self.plan = plan
        self.job_id = str(os.getpid())
        self.tasks: list[subprocess.Popen[bytes]] = []
        self.cancelled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._forward)

    def run(self, attempt: int) -> Decision:
        plan = self.plan
        place = Place(Path(plan.logs), self.job_id, attempt)
        log = place.logs / f"{self.job_id}_0_log.err"
        with open(log, "a") as file:
            file.write(marker(str(attempt)) + "\n")
        exit_code = 0
        if not self.cancelled:
            self._start(attempt)
            exit_code = self._wait()
        return conclude(
            Path(plan.run),
            place,
            exit_code,
            last_attempt(log),
            max_requeues=plan.max_requeues,
            job_state="CANCELLED" if self.cancelled else "RUNNING",
        )

    def _start(self, attempt: int) -> None:
        command = [sys.executable, "-u", "-m", "submitit.core._submit", self.plan.logs]
        for rank in range(self.plan.tasks):
            environment = {
                **os.environ,
                "SUBMITIT_EXECUTOR": "local",
                "SUBMITIT_LOCAL_JOB_ID": self.job_id,
                "SUBMITIT_LOCAL_NTASKS": str(self.plan.tasks),
                "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
                "SUBMITIT_LOCAL_NODEID": "0",
                "SUBMITIT_LOCAL_GLOBALID": str(rank),
                "SUBMITIT_LOCAL_LOCALID": str(rank),
                job_variables.ATTEMPT: str(attempt),
            }
            base = Path(self.plan.logs) / f"{self.job_id}_{rank}_log"
            with open(f"{base}.out", "a") as out, open(f"{base}.err", "a") as err:
                self.tasks.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))

    def _wait(self) -> int:
        """Until all processes have left; a failed one takes the others with it. The largest exit code."""
        start = time.monotonic()
        limit = start + self.plan.seconds
        steps = [(limit - self.plan.warning, signal.SIGUSR2), (limit, signal.SIGTERM), (limit + 5, signal.SIGKILL)]
        while True:
            codes = [task.poll() for task in self.tasks]
            if all(code is not None for code in codes):
                self.tasks = []
                return max(128 - code if code < 0 else code for code in codes if code is not None)
            if any(codes) and steps:
                self._report(codes)
                self._signal(signal.SIGKILL)
                steps = []
            if steps and time.monotonic() >= steps[0][0]:
                self._signal(steps.pop(0)[1])
            time.sleep(_POLL)

    def _report(self, codes: Sequence[int | None]) -> None:
        """Say which process was killed, as srun does."""
        for rank, code in enumerate(codes):
            if code is not None and code < 0:
                with open(Path(self.plan.logs) / f"{self.job_id}_0_log.err", "a") as file:
                    how = signal.strsignal(-code) or f"signal {-code}"
                    file.write(f"local_job: error: {socket.gethostname()}: task {rank}: {how}\n")

    def _signal(self, number: int) -> None:
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(number)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR2:
            self.cancelled = True
            number = signal.SIGTERM
        self._signal(number)


@contextmanager
def _slot(plan: LocalPlan, job: _LocalJob) -> Iterator[None]:
    """Wait until fewer than ``parallel`` other runs of the same sweep are under way. A dead one frees its place."""
    if plan.slots is None:
        yield
        return
    files = [open(Path(plan.slots) / f"{plan.token}.slot{i}", "w") for i in range(plan.parallel)]  # noqa: SIM115
    try:
        while not (job.cancelled or any(_lock(file) for file in files)):
            time.sleep(_POLL)
        yield
    finally:
        for file in files:
            file.close()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
