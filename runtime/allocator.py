"""What the C library does with memory that a training step has freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process (and those it forks) keep freed memory for its next allocation; whether that could be arranged.

    Every step allocates and frees the same maps. Left alone, glibc gives most of them back to the system, which hands
    them out again page by page, zeroed: 7 to 10% of a step of a ResNet-18 on a CPU. The price is that the process stays
    as large as it once was. Only glibc is known to need this and to offer it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
