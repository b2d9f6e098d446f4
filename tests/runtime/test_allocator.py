"""Freed memory is kept: a fresh process allocates the same blocks again without asking the system for pages."""

import ctypes
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
import polyscene.runtime.allocator as allocator
kept = allocator.keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE, faults = 24 * 2**20, []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(SIZE) for _ in range(6)]
    for block in blocks:
        libc.memset(block, 1, SIZE)
    for block in blocks:
        libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, faults[0], faults[-1])
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")


def run(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    kept, first, last = done.stdout.split()
    return kept, int(first), int(last)


@glibc
def test_blocks_that_were_freed_cost_no_new_pages():
    kept, first, last = run("keep")
    assert kept == "True"
    assert first > 1000
    assert last < first / 100


@glibc
def test_left_alone_they_do():
    _, first, last = run("leave")
    assert last > first / 2


def test_other_systems_are_left_alone(monkeypatch):
    from polyscene.runtime import allocator

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    assert not allocator.keep_freed_memory()
