"""Processes of local jobs: whether one still lives, and how it is asked to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_CLOCK_SLACK = 60.0  # seconds by which a process may seem to have started after its submission was noted


def process_alive(number: int, started_before: float | None = None) -> bool:
    """Whether a process exists and is at work; one that ended and was not waited for is not.

    Args:
        number: of the process.
        started_before: seconds since 1970; a process that started later only has the number of the one meant.
    """
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and belongs to somebody else
    fields = _stat(number)
    if fields is None:
        return True  # no /proc on this system
    state, started = fields
    if state in "ZX":
        return False
    return started_before is None or started <= started_before + _CLOCK_SLACK


def interrupt(number: int) -> bool:
    """Ask a process to finish its step, save and leave; False if it is gone."""
    try:
        os.kill(number, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def _stat(number: int) -> tuple[str, float] | None:
    """State letter and start, in seconds since 1970; None where there is no /proc or the process is gone."""
    try:
        text = Path(f"/proc/{number}/stat").read_text()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in brackets may hold anything
    ticks = int(fields[19])
    return fields[0], time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
