"""Blocks of shared memory that a worker process lends to the main process, again and again.

A new block costs more than filling it: the system finds, zeroes and maps its pages one by one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

MOST = 16
"""Blocks that a worker keeps; beyond them, every block is used once."""

_FOOTER = 64  # bytes at the end of a block: a mark, and whether it is lent
_MARK = bytes.fromhex("9f1d0c6b5ae34277b8c05d6e41f2a793")
_SPARE = 8  # a block has an eighth more room than was asked for: the next batch is a little larger


class SharedBlocks:
    """The blocks of one worker.

    Args:
        has_room: number of bytes -> whether a new block may be that large.
    """

    def __init__(self, has_room: Callable[[int], bool]):
        self._has_room = has_room
        self._blocks: list[Tensor] = []

    def take(self, size: int) -> Tensor | None:
        """(size,) uint8 with any content, lent until the main process has freed what `lent` made of it; or None."""
        free: list[Tensor] = []
        busy: list[Tensor] = []
        for block in self._blocks:
            (busy if _footer(block)[-1] else free).append(block)
        fitting = [block for block in free if len(block) >= size + _FOOTER]
        if fitting:
            block = min(fitting, key=len)
        else:
            whole = size + size // _SPARE + _FOOTER
            if not self._has_room(whole):
                return None
            # As torch's own collation does: sharing a finished tensor would copy it once more.
            block = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(whole))
            _footer(block)[: len(_MARK)] = torch.frombuffer(bytearray(_MARK), dtype=torch.uint8)
            self._blocks = busy  # the free ones are too small
            if len(self._blocks) < MOST:
                self._blocks.append(block)
        _footer(block)[-1] = 1
        return block[:size]


def lent(pixels: Tensor) -> Tensor:
    """In the main process: the same memory, given back to its worker when the last tensor that uses it is gone."""
    whole = torch.empty(0, dtype=torch.uint8).set_(pixels.untyped_storage())
    footer = _footer(whole) if len(whole) >= _FOOTER else whole
    if bytes(footer[: len(_MARK)].numpy()) != _MARK:
        return pixels
    # A tensor made from an array keeps that very array alive as long as any tensor uses its memory.
    array = pixels.numpy()[:]
    weakref.finalize(array, footer[-1].zero_).atexit = False
    return torch.from_numpy(array)


def _footer(block: Tensor) -> Tensor:
    return block[-_FOOTER:]
