"""Atomic save, verified restore and retention of the whole training state."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .files import atomic_writer, write_text

_NAME = re.compile(r"step-(\d+)\.pt")


@dataclass
class Restored:
    """A checkpoint that was read back.

    Attributes:
        state: what was saved.
        path: the file it came from.
        damaged: ``(file, reason)`` of newer checkpoints that could not be read; they were renamed ``*.damaged``.
    """

    state: dict[str, Any]
    path: Path
    damaged: list[tuple[Path, str]] = field(default_factory=list)


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file that holds the state after ``step`` optimiser steps."""
    return folder / f"step-{step:08d}.pt"


def checkpoint_step(path: Path) -> int:
    """The number of optimiser steps behind a checkpoint file."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not a checkpoint name: {path.name}")
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=checkpoint_step)


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, keep_last: int, keep_every_steps: int | None
) -> Path:
    """Write ``state`` so that a crash at any moment leaves a complete newest checkpoint, then drop old ones.

    Args:
        folder: where checkpoints live; created if absent.
        step: optimiser steps done.
        state: nested dicts of tensors and plain values only (it is read back without unpickling code).
        keep_last: how many newest checkpoints stay, >= 1.
        keep_every_steps: checkpoints whose step is a multiple of this stay for ever; None: no such ones.

    Raises:
        UserError: the disk is full; older checkpoints survive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    with atomic_writer(path) as file:
        torch.save(state, file)
    write_text(folder / "last", path.name + "\n")
    # Only after the new one is safe; keep_last counts it.
    for old in list_checkpoints(folder)[: -max(keep_last, 1)]:
        if not (keep_every_steps and checkpoint_step(old) % keep_every_steps == 0):
            old.unlink(missing_ok=True)
    return path


def restore_checkpoint(folder: Path, map_location: str | torch.device = "cpu") -> Restored | None:
    """Read the newest checkpoint that is intact; None if the folder holds none.

    Raises:
        UserError: checkpoints exist but none can be read.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return Restored(read_checkpoint(path, map_location), path, damaged)
        except UserError as error:
            damaged.append((path, str(error)))
    if damaged:
        raise UserError(
            f"no checkpoint in '{folder}' can be read ({damaged[0][1]}); restore one from a backup, "
            "or start afresh with overwrite=true"
        )
    return None


def set_aside(damaged: list[tuple[Path, str]]) -> None:
    """Rename unreadable checkpoints to ``*.damaged``, so that they neither count as newest nor get lost."""
    for path, _ in damaged:
        path.rename(path.with_name(path.name + ".damaged"))


def read_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read and verify one checkpoint file, without unpickling code.

    Raises:
        UserError: the file is truncated, has flipped bits, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not compare the checksums that torch.save stores.
            broken = archive.testzip()
        if broken is not None:
            raise UserError(f"'{path}' is damaged: checksum of '{broken}' does not match")
        return torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # A damaged zip or pickle can raise nearly anything; all of it means the same to the caller.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"'{path}' is not a readable checkpoint: {reason}") from error
