"""The log of a run as it grows: what rank 0 prints and log.txt, every line once, until the job ends."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .job_logs import job_files
from .job_record import read_state
from .run_overview import RunOverview, describe_run

_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
_SHOWN_BEFORE = 20  # lines of the past


class GrowingFile:
    """A text file that somebody appends to; it need not exist yet.

    Args:
        path: the file.
        start: byte to begin at; a line that begins before it is left out.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path = path
        self._position = start
        self._rest = b""
        self._skip_first = start > 0

    def new_lines(self) -> list[str]:
        """The lines that were finished since the last call; from the beginning if the file was made anew."""
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, 2)
                if size < self._position:
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                content = file.read()
        except OSError:
            return []
        self._position += len(content)
        *whole, self._rest = (self._rest + content).split(b"\n")
        if self._skip_first and whole:
            self._skip_first = False
            whole = whole[1:]
        # A progress bar draws over itself: only its last state is a line.
        return [line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2] for line in whole]

    def rest(self) -> str:
        """What stands after the last end of a line."""
        return self._rest.decode("utf-8", errors="replace").rpartition("\r")[2]


class OnceOnly:
    """Lets a line through that reaches it from one file, and holds back its twin from another.

    What a run says goes to the console, which is the job's output, and with the time to log.txt.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, Counter[str]] = {}

    def __call__(self, source: Path, line: str) -> bool:
        """Whether to show a line of a file."""
        message = _TIME.sub("", line).strip()
        for other, seen in self._seen.items():
            if other != source and seen[message] > 0:
                seen[message] -= 1
                return False
        self._seen.setdefault(source, Counter())[message] += 1
        return True


def follow(
    path: Path, show: Callable[[str], None], *, poll_seconds: float = 1.0, queue_seconds: float = 10.0
) -> RunOverview:
    """Show the log of a run until its job has ended; what came before is cut to some lines.

    Args:
        path: the run directory.
        show: gets every line.
        poll_seconds: between two looks at the files.
        queue_seconds: between two questions to SLURM, unless the job itself says that its state changed.

    Returns:
        The run at the end.
    """
    overview = describe_run(path)
    files: dict[Path, GrowingFile] = {}
    once = OnceOnly()
    past = _read_new(overview, files, once)
    for line in past[-_SHOWN_BEFORE:]:
        show(line)
    if not past and overview.live:
        show(f"-- {_state(overview)}, nothing is printed yet")
    said, asked = read_state(path), time.monotonic()
    on_slurm = overview.record is not None and overview.record.executor == "slurm"
    while overview.live:
        time.sleep(poll_seconds)
        now_said = read_state(path)
        if now_said != said or not on_slurm or time.monotonic() - asked >= queue_seconds:
            before = _state(overview)
            overview, said, asked = describe_run(path), now_said, time.monotonic()
            if overview.live and _state(overview) != before:
                show(f"-- {_state(overview)}")
        for line in _read_new(overview, files, once):
            show(line)
    for line in [*_read_new(overview, files, once), *(file.rest() for file in files.values() if file.rest())]:
        show(line)
    return overview


def _state(overview: RunOverview) -> str:
    return f"{overview.state} ({overview.reason})" if overview.reason else overview.state


def _read_new(overview: RunOverview, files: dict[Path, GrowingFile], once: OnceOnly) -> Sequence[str]:
    """New lines of all files, those of log.txt last: a run prints before it notes."""
    record = overview.record
    printed = job_files(record, rank=0) if record is not None else []
    paths = [*reversed(printed), overview.path / "log.txt"]
    lines = []
    for path in paths:
        file = files.setdefault(path, GrowingFile(path))
        lines += [line for line in file.new_lines() if once(path, line)]
    return lines
