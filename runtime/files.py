"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing; on success flush it to disk and rename it to ``path``.

    Raises:
        UserError: the disk is full or the folder is not writable; what was at ``path`` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is not None:
            raise UserError(_explain(cause, path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Atomically replace ``path`` by ``text`` (UTF-8)."""
    with atomic_writer(path) as file:
        file.write(text.encode())


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and check that files can be written there.

    Raises:
        UserError: a file is in the way, or the place is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to '{path}': {error.strerror}; choose another folder with out=DIR") from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind ``error``: libraries wrap a full disk in exceptions of their own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _explain(error: OSError, path: Path) -> str:
    if error.errno in _FULL:
        return f"disk full while writing '{path}' (the previous file is intact); free some space and run again"
    return f"cannot write '{path}': {error.strerror}; check the folder's permissions or choose another one"


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once the folder itself is on disk; some file systems cannot sync folders.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
