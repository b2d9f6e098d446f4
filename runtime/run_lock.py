"""One process at a time writes a run directory: a lock that survives a dead owner.

The lock is a file that names its owner. Its age is judged by the clock of the file system, so that machines with
different clocks agree; the owner touches it every few seconds. On the owner's own machine the process table decides.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from . import job_variables
from .errors import UserError

LOCK_FILE = ".lock"

BEAT = 10.0  # seconds between two touches
STALE = 60.0  # seconds without a touch after which an owner elsewhere counts as dead

_scope: ContextVar[ExitStack | None] = ContextVar("run_locks", default=None)


@dataclass(frozen=True)
class Owner:
    """Who holds a run directory.

    Attributes:
        token: of this lock.
        machine: name of the machine.
        processes: the machine's process table (boot and namespace), within which ``pid`` means something.
        pid: process number.
        started: start of the process in clock ticks since boot; tells a process from a later one with its number.
        job: the cluster's job, or empty.
    """

    token: str
    machine: str
    processes: str
    pid: int
    started: str
    job: str

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.machine}"


class RunLock:
    """The right to write a run directory.

    Args:
        path: the run directory.
        environment: variables of this process.
        beat: seconds between two touches.
        stale: seconds without a touch after which an owner on another machine counts as dead.
    """

    def __init__(
        self,
        path: Path,
        *,
        environment: Mapping[str, str] = os.environ,
        beat: float = BEAT,
        stale: float = STALE,
    ):
        self.file = Path(path) / LOCK_FILE
        self._beat, self._stale = beat, stale
        self._owner = _this_process(environment.get(job_variables.JOB, ""))
        self._ended = threading.Event()
        self._held = False

    def acquire(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Take the lock, or go on with one that this process holds already.

        An earlier attempt of the same job is waited for: its machine may have died a moment ago.

        Raises:
            UserError: another live process holds it; or the folder is not writable.
        """
        deadline = time.monotonic() + 3 * self._stale
        while not self._create():
            owner = read_owner(self.file)
            if owner is not None and _same_process(owner, self._owner):
                return
            if not self._alive(owner):
                self._remove_stale(owner)
            elif owner is not None and owner.job and owner.job == self._owner.job and time.monotonic() < deadline:
                sleep(min(1.0, self._stale))
            else:
                raise UserError(self._refusal(owner))
        self._held = True
        threading.Thread(target=self._keep_alive, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back; nothing happens if this process does not hold it."""
        if self._held and os.getpid() == self._owner.pid:
            self._held = False
            self._ended.set()
            if read_owner(self.file) == self._owner:
                self.file.unlink(missing_ok=True)

    def _create(self) -> bool:
        text = json.dumps(asdict(self._owner)).encode()
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(
                f"cannot write to '{self.file.parent}': {error.strerror}; choose another folder with out=DIR"
            ) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        return True

    def _alive(self, owner: Owner | None) -> bool:
        if owner is not None and self._is_here(owner):
            return _start_of(owner.pid) == owner.started
        age = _age(self.file)
        return age is not None and age < self._stale

    def _is_here(self, owner: Owner) -> bool:
        """Whether the process table of this machine knows about the owner."""
        return owner.processes == self._owner.processes and bool(owner.started)

    def _remove_stale(self, judged: Owner | None) -> None:
        """Move a dead owner's lock away; of several processes that do so at once, one gets the file."""
        aside = self.file.with_name(f"{LOCK_FILE}-{uuid.uuid4().hex}")
        try:
            os.rename(self.file, aside)
        except OSError:
            return  # somebody else did
        if read_owner(aside) != judged:
            # The dead owner's lock was already replaced by a live one, which is put back.
            with suppress(OSError):
                os.link(aside, self.file)
        aside.unlink(missing_ok=True)

    def _refusal(self, owner: Owner | None) -> str:
        folder = self.file.parent
        who = "another process" if owner is None else str(owner)
        if owner is not None and self._is_here(owner):
            return f"'{folder}' is in use by {who}; wait for it, stop it, or choose another out=DIR"
        age = _age(self.file) or 0.0
        return (
            f"'{folder}' is in use by {who}, which gave a sign of life {age:.0f} s ago; wait for it, stop it, or "
            f"choose another out=DIR (a dead process is noticed after {self._stale:.0f} s)"
        )

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                if read_owner(self.file) != self._owner:
                    return
                os.utime(self.file)
            except OSError:
                return  # the folder was removed


@contextmanager
def run_locks() -> Iterator[None]:
    """Give back, at the end, every lock that :func:`hold_run` takes within; without it they are held until exit."""
    with ExitStack() as stack:
        token = _scope.set(stack)
        try:
            yield
        finally:
            _scope.reset(token)


def hold_run(path: Path) -> None:
    """Hold a run directory until the end of :func:`run_locks`, or of the process.

    Raises:
        UserError: another live process holds it.
    """
    lock = RunLock(path)
    lock.acquire()
    scope = _scope.get()
    if scope is None:
        atexit.register(lock.release)
    else:
        scope.callback(lock.release)


def live_owner(path: Path) -> Owner | None:
    """Who writes a run directory now; None if nobody does."""
    lock = RunLock(path)
    owner = read_owner(lock.file)
    return owner if owner is not None and lock._alive(owner) else None


def read_owner(file: Path) -> Owner | None:
    """The owner that a lock names; None if there is no lock, or a half-written one."""
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _this_process(job: str) -> Owner:
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, socket.gethostname(), _process_table(), pid, _start_of(pid), job)


def _same_process(one: Owner, other: Owner) -> bool:
    return (one.processes, one.pid, one.started) == (other.processes, other.pid, other.started)


def _process_table() -> str:
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """When a process started; empty if there is none, or only its remains that nobody has collected."""
    try:
        # The second field, the name, may hold anything but ends with the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _age(file: Path) -> float | None:
    """Seconds since a file was touched, by the clock of its file system; None if it is gone."""
    probe = file.with_name(f".clock-{uuid.uuid4().hex}")
    try:
        touched = file.stat().st_mtime
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return None
    return now - touched
