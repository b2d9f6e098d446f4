"""Where packs lie: in a folder that runs share, or in memory that disappears with its last user."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.run_lock import RunLock, live_owner

from .packed_cache import BadPack, ImagePack
from .sources import ImageSource

PACK_NAME = "images.pack"

_TEMPORARY = f".{PACK_NAME}.tmp"  # what `atomic_writer` calls it
_PATIENCE = 0.5  # seconds between two looks at a lock


def pack_folder(cache_dir: Path, source: ImageSource, side: int) -> Path:
    """The folder of a source's pack: the same for all runs that use the same images at the same side."""
    return cache_dir / f"{source.kind}-{source.fingerprint()}-{side}"


def find_pack(folder: Path, identity: str) -> tuple[ImagePack | None, str]:
    """The pack in a folder; or None, and what is wrong with the one that is there (empty if none is).

    Raises:
        UserError: it cannot be read.
    """
    path = folder / PACK_NAME
    try:
        return ImagePack(path, identity), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except BadPack as fault:
        return None, str(fault)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; check its permissions or delete it") from error


def open_or_write_pack(
    folder: Path, identity: str, write: Callable[[IO[bytes]], None], say: Callable[[str], None]
) -> ImagePack:
    """The pack in a folder, written first if there is none or if it is not true (any more).

    Of several processes and jobs, on one machine or many, one writes; the others wait for it. The file appears when it
    is complete and on the disk. One that is damaged, truncated or made from other files is deleted and written anew.

    Args:
        folder: of this pack alone.
        identity: of the images.
        write: writes the pack into an open file.
        say: is told what goes on, a line at a time.

    Raises:
        UserError: the folder is not writable, the disk is full, or ``write`` raised it.
    """
    pack, _ = find_pack(folder, identity)
    if pack is not None:
        return pack  # the folder may be another user's
    _make_folder(folder)
    with _held(folder, say, lambda: find_pack(folder, identity)[0] is not None):
        pack, fault = find_pack(folder, identity)
        if pack is not None:
            return pack
        path = folder / PACK_NAME
        if fault:
            say(f"'{path}' cannot be used ({fault}); the images are packed again")
            path.unlink(missing_ok=True)
        with atomic_writer(path) as file:
            write(file)
        say(f"packed images: '{path}', {path.stat().st_size / 2**30:.2f} GiB")
        return ImagePack(path, identity)


def remove_leftovers(cache_dir: Path) -> None:
    """Delete the half-written packs of processes that were killed; those of living ones stay."""
    for temporary in cache_dir.glob(f"*/{_TEMPORARY}"):
        lock = RunLock(temporary.parent)
        try:
            lock.acquire()
        except UserError:
            continue  # somebody writes it
        with suppress(OSError):
            temporary.unlink()
        lock.release()


@contextmanager
def memory_pack(identity: str, write: Callable[[IO[bytes]], None], *, verify: bool) -> Iterator[ImagePack]:
    """A pack in a file that exists in memory only.

    Other processes of this user on this machine open it by its path as long as this one lives and is in the context.
    The system frees it with the last process that uses it, however that ends.

    Args:
        identity: of the images.
        write: writes the pack into an open file.
        verify: whether images are compared with their checksums when they are first read.

    Raises:
        UserError: no room, or ``write`` raised it.
    """
    if not hasattr(os, "memfd_create"):
        raise UserError("images can be kept in memory on Linux only; use data.cache=disk or none")
    descriptor = os.memfd_create("polyscene-images")
    try:
        try:
            with open(descriptor, "wb", closefd=False) as file:
                write(file)
        except OSError as error:
            raise UserError(
                f"no room for the packed images in memory ({error.strerror}); lower data.cache_side or use "
                "data.cache=disk"
            ) from error
        yield ImagePack(f"/proc/{os.getpid()}/fd/{descriptor}", identity, verify=verify)
    finally:
        os.close(descriptor)


def copy_pack(pack: ImagePack, file: IO[bytes]) -> None:
    """Copy a pack's file."""
    with open(pack.path, "rb") as whole:
        shutil.copyfileobj(whole, file, 1 << 24)


@contextmanager
def _held(folder: Path, say: Callable[[str], None], finished: Callable[[], bool]) -> Iterator[None]:
    """Hold a folder's lock, or go on without it as soon as ``finished``."""
    lock = RunLock(folder)
    waiting = False
    while not finished():
        try:
            lock.acquire()
            break
        except UserError:  # the folder is writable: somebody else holds it
            if not folder.is_dir():
                raise
            if not waiting:
                say(f"waiting for the packed images in '{folder}' ({live_owner(folder) or 'another process'} is at it)")
            waiting = True
            time.sleep(_PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # processes of several machines may have the same number
    except OSError as error:
        raise UserError(
            f"cannot write to '{folder}': {error.strerror}; choose another data.cache_dir or data.cache=memory"
        ) from error
