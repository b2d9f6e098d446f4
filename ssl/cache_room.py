"""Is there room for the packed images? Looked at before hours of work rather than after."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from polyscene.runtime.errors import UserError

_FOR_TRAINING = 0.1
"""Share of a GPU's free memory that packed images must leave to the model."""


def check_room(needed: int, free: int | None, where: str, remedy: str) -> None:
    """Refuse packed images that do not fit.

    Args:
        needed: bytes.
        free: bytes; None if nobody knows.
        where: named in the message.
        remedy: what to do about it.

    Raises:
        UserError: naming both numbers in GiB.
    """
    if free is not None and needed > free:
        raise UserError(
            f"the packed images need about {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free {where}; "
            f"{remedy}"
        )


def disk_room(folder: Path) -> int:
    """Bytes that can be written to a folder, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def device_room(device: torch.device) -> int | None:
    """Bytes of a device's memory that packed images may take."""
    if device.type != "cuda":
        return memory_room()
    return int((1 - _FOR_TRAINING) * torch.cuda.mem_get_info(device)[0])


def memory_room(
    system: Path = Path("/proc/meminfo"),
    groups: Path = Path("/proc/self/cgroup"),
    tree: Path = Path("/sys/fs/cgroup"),
) -> int | None:
    """Bytes of this machine's memory that this process may still take; None where the system does not say.

    A cluster's job has a limit of its own, which kills without a word: with control groups of version 2 it is known.

    Args:
        system: the machine's memory.
        groups: which control group this process is in.
        tree: where the control groups are.
    """
    try:
        lines = system.read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    free = 1024 * kilobytes
    try:
        place = next(line[3:] for line in groups.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return free
    group = tree / place.strip("/")
    for folder in (group, *group.parents):
        if folder == tree.parent:
            break
        free = min(free, _group_room(folder, free))
    return max(free, 0)


def _group_room(folder: Path, unlimited: int) -> int:
    """What a control group has left, its file cache counted as free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        counted = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return unlimited
    if limit == "max":
        return unlimited
    return int(limit) - int(counted.get("anon", 0)) - int(counted.get("shmem", 0))
