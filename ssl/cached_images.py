"""Where the pixels of a run come from: files, a pack on the disk, in memory, or on the device."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar

from .batches import ImageBatch
from .cache_room import check_room, device_room, disk_room, memory_room
from .image_readers import FileReader, PackReader, PlaceReader
from .loading import ImageSupply, MakeBatch
from .pack_files import PACK_NAME, copy_pack, find_pack, memory_pack, open_or_write_pack, pack_folder, remove_leftovers
from .packed_cache import ImagePack
from .packing import expected_bytes, pack_source, source_identity
from .sources import ImageSource

Result = TypeVar("Result")

_STAGING_BYTES = 1 << 26
_CHECKING_THREADS = 8


@dataclass(frozen=True)
class CachePlan:
    """How the images of a run are kept.

    Attributes:
        kind: `none`: decoded whenever they are shown. `disk`: a pack in ``folder``, mapped into memory. `memory`: one
            in the memory of each machine, shared by its processes. `device`: all its pixels on the device of every
            process.
        source: the images.
        side: short side at which larger images are stored, pixels.
        folder: where the pack is kept between runs; None: it is not, and every start packs the images.
        workers: processes that decode, once.
        identity: `packing.source_identity`; empty for `none`.
    """

    kind: Literal["none", "memory", "disk", "device"]
    source: ImageSource
    side: int
    folder: Path | None
    workers: int
    identity: str


def plan_cache(
    kind: Literal["none", "memory", "disk", "device"],
    source: ImageSource,
    *,
    side: int,
    cache_dir: Path | None,
    workers: int,
    world: World,
) -> CachePlan:
    """Decide where packed images go, and refuse what does not fit before anything is written; a collective call.

    Args:
        kind: see `CachePlan`.
        source: the images.
        side: short side at which larger images are stored, pixels.
        cache_dir: folder of the packs of all runs; None for `memory` and `device`: nothing is kept.
        workers: processes that decode.
        world: the processes of the run.

    Raises:
        UserError: no room; an unreadable pack.
    """
    if kind == "none":
        return CachePlan(kind, source, side, None, workers, "")
    found = source_identity(source, side) if world.is_main else None
    identity = world.gather_objects(found)[0]
    folder = None if cache_dir is None else pack_folder(cache_dir, source, side)
    plan = CachePlan(kind, source, side, folder, workers, identity)
    if cache_dir is not None and world.is_main:
        remove_leftovers(cache_dir)
    _together(world, partial(_check_rooms, plan, world.device))
    return plan


@contextmanager
def open_supply(
    plan: CachePlan, world: World, *, say: Callable[[str], None], console: Console
) -> Iterator[ImageSupply]:
    """The images as planned, packed first where that has not been done; a collective call.

    Views are drawn from the sizes of the stored images, so that for a given side `memory`, `disk` and `device` make the
    same batches bit for bit. They differ from `none` where images are larger than that side.

    Args:
        plan: of `plan_cache`.
        world: the processes of the run; each must leave the context before the memory of `memory` is freed.
        say: is told what goes on, a line at a time.
        console: where progress is shown.

    Raises:
        UserError: no room, an unwritable folder, or a damaged pack.
    """
    source = plan.source
    if plan.kind == "none":
        yield ImageSupply(FileReader(source))
        return
    with ExitStack() as stack:
        pack = _open_pack(plan, world, stack, say, console)
        if pack.reasons:
            say(f"{len(pack.reasons)} of {len(pack):,} images cannot be read; others are shown in their place")
        if plan.kind != "device":
            yield ImageSupply(PackReader(source, pack))
            return
        resident = _together(world, partial(upload, pack, world.device))
        places = PlaceReader(source, pack.starts, pack.sizes, pack.reasons)
        del pack
        stack.close()  # frees the memory it was packed in
        yield ImageSupply(places, partial(_attach, resident))


def upload(pack: ImagePack, device: torch.device) -> Tensor:
    """All pixels of a pack, (P,) uint8, on a device.

    Raises:
        UserError: they do not fit, or do not match their checksums.
    """
    total = len(pack.pixels)
    check_room(total, device_room(device), f"on {device}", _remedy("device"))
    resident = torch.empty(total, dtype=torch.uint8, device=device)
    lengths = pack.sizes.prod(axis=1) * 3
    staging = torch.empty(
        max(_STAGING_BYTES, int(lengths.max(initial=0))), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    with ThreadPoolExecutor(_CHECKING_THREADS) as pool:
        for first, last in _groups(lengths, len(staging)):
            images = range(first, last)
            pack.prefetch([(int(pack.starts[first]), pack.extent(last - 1)[1])])
            size = int(lengths[first:last].sum())
            np.concatenate(list(pool.map(pack.image, images)), out=staging.numpy()[:size])
            start = int(pack.starts[first])
            resident[start : start + size].copy_(staging[:size])
    return resident


def _open_pack(
    plan: CachePlan, world: World, stack: ExitStack, say: Callable[[str], None], console: Console
) -> ImagePack:
    """The pack on the disk, or in the memory of this machine."""

    def write(file: IO[bytes]) -> None:
        total = len(plan.source)
        say(f"packing {total:,} images, shorter sides reduced to {plan.side} pixels; workers: {plan.workers}")
        with ProgressBar(console, "packing", total) as bar:
            pack_source(file, plan.source, plan.identity, plan.side, workers=plan.workers, progress=bar.update)

    on_disk = None
    if plan.folder is not None:
        on_disk = _together(world, partial(open_or_write_pack, plan.folder, plan.identity, write, say))
        if plan.kind != "memory":
            return on_disk
    leader = world.gather_objects(_machine()).index(_machine())

    def make() -> str | None:
        if world.rank != leader:
            return None
        fill = write if on_disk is None else partial(copy_pack, on_disk)
        return stack.enter_context(memory_pack(plan.identity, fill, verify=on_disk is not None)).path

    path = world.gather_objects(_together(world, make))[leader]
    return _together(world, lambda: ImagePack(path, plan.identity, verify=on_disk is not None))


def _check_rooms(plan: CachePlan, device: torch.device) -> None:
    """Refuse early what does not fit; where no pack lies, its size is estimated."""
    pack, fault = (None, "") if plan.folder is None else find_pack(plan.folder, plan.identity)
    needed = expected_bytes(plan.source, plan.side) if pack is None else len(pack.pixels)
    if plan.folder is not None and pack is None:
        freed = (plan.folder / PACK_NAME).stat().st_size if fault else 0
        check_room(needed, disk_room(plan.folder) + freed, f"at '{plan.folder}'", _remedy("disk"))
    if plan.kind == "memory" or (plan.kind == "device" and plan.folder is None):
        check_room(needed, memory_room(), "in memory", _remedy("memory"))
    if plan.kind == "device":
        check_room(needed, device_room(device), f"on {device}", _remedy("device"))


def _remedy(kind: str) -> str:
    if kind == "disk":
        return "lower data.cache_side, choose another data.cache_dir, or use data.cache=none"
    return "lower data.cache_side or use data.cache=disk"


def _attach(resident: Tensor, batch: ImageBatch, from_files: MakeBatch) -> ImageBatch:
    return replace(batch, pixels=resident)


def _together(world: World, attempt: Callable[[], Result]) -> Result:
    """Do something in every process of a run; what stops one of them stops all."""
    result, failure = None, None
    try:
        result = attempt()
    except UserError as error:
        failure = str(error)
    failures = [text for text in world.gather_objects(failure) if text]
    if failures:
        raise UserError(failures[0])
    return result


def _machine() -> tuple[str, str]:
    """Equal in processes that can open each other's files in /proc."""
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), ""


def _groups(lengths: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs first..last-1 of images that fill at most so many bytes (at least one image each)."""
    first, filled = 0, 0
    for number, length in enumerate(lengths.tolist()):
        if filled + length > most and number > first:
            yield first, number
            first, filled = number, 0
        filled += length
    if len(lengths):
        yield first, len(lengths)
