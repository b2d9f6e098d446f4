"""Tensors on their way from a worker process: in one block of shared memory, or through a pipe where there is no room.

Every shared tensor costs an open file, of which a process may have 1024; and containers often have 64 MB of shared
memory, beyond which a write kills the process. Hence one block an item, and a look at the room first.
"""

from __future__ import annotations

import io
import pickle
import shutil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .shared_blocks import SharedBlocks, lent

_ALIGNMENT = 64  # bytes, so that every tensor of a block starts where vector instructions like it


class Parcel:
    """An item of any structure in one block of memory; unpickled in another process, it is the item itself.

    CPU tensors in it become views of the block; those stored channels last stay so.
    """

    def __init__(self, item: Any):
        buffers: list[pickle.PickleBuffer] = []
        file = io.BytesIO()
        _BlockPickler(file, protocol=5, buffer_callback=buffers.append).dump(item)
        self._head = file.getvalue()
        parts = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
        self._places, size = [], 0
        for part in parts:
            self._places.append((size, len(part)))
            size += -(-len(part) // _ALIGNMENT) * _ALIGNMENT
        self._block = shared_buffer(size)
        block = self._block.numpy()
        for part, (start, length) in zip(parts, self._places):
            block[start : start + length] = part

    def __reduce__(self) -> tuple[Any, ...]:
        block = self._block if self._block.is_shared() else self._block.numpy()
        return _open, (self._head, self._places, block)


def _open(head: bytes, places: list[tuple[int, int]], block: Any) -> Any:
    memory = memoryview(lent(block).numpy() if isinstance(block, Tensor) else block)
    # Bytes that `Parcel` wrote in a worker process of this run.
    return pickle.loads(head, buffers=[memory[start : start + length] for start, length in places])


def shared_buffer(size: int) -> Tensor:
    """Uninitialised uint8 memory, which the main process can map if this is a worker and there is room.

    In the main process it must become `shared_blocks.lent`, or the worker never gets it back.
    """
    worker = get_worker_info()
    block = None if worker is None else worker.dataset.blocks(worker.num_workers).take(size)
    return torch.empty(size, dtype=torch.uint8) if block is None else block


def worker_blocks(workers: int) -> SharedBlocks:
    """Blocks for one of so many workers, which share the room."""
    return SharedBlocks(lambda size: fits_shared_memory(size * workers))


def fits_shared_memory(size: int) -> bool:
    """Whether shared memory has room for twice as many bytes.

    Containers often have 64 MB of it, and a process that writes beyond is killed by SIGBUS. Through a pipe a batch
    takes longer, but arrives.
    """
    try:
        return shutil.disk_usage("/dev/shm").free > 2 * size
    except OSError:  # other systems keep shared memory elsewhere
        return True


def by_value(value: Any) -> bytes:
    """Pickle with CPU tensors written as numpy arrays: nothing of it goes through shared memory."""
    file = io.BytesIO()
    _ValuePickler(file, protocol=5).dump(value)
    return file.getvalue()


class _ValuePickler(pickle.Pickler):
    """Writes CPU tensors as numpy arrays."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.device.type == "cpu" and value.dtype is not torch.bfloat16:
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


class _BlockPickler(_ValuePickler):
    """The same, with images (N, C, H, W) that are stored channels last."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.dim() == 4 and not value.is_contiguous():
            inside_out = value.permute(0, 2, 3, 1)
            if inside_out.is_contiguous():  # as such numpy can send it without a copy
                return _channels_last, (inside_out,)
        return super().reducer_override(value)


def _channels_last(value: Tensor) -> Tensor:
    return value.permute(0, 3, 1, 2)
