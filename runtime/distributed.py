"""Which process am I, on which device, and how the processes of one run talk.

One process, ``torchrun`` and cluster launchers look the same to the rest of the package: a :class:`World`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of one run, seen from one of them.

    Attributes:
        rank: number of this process, 0 .. size - 1. Rank 0 writes files.
        size: number of processes.
        device: where this process computes.
        control: gloo group for small host-side messages, so that they never wait for the device; None if size is 1.
    """

    rank: int
    size: int
    device: torch.device
    control: Any = None

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and talks to the user."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate ``tensor`` (n, ...) of all ranks in rank order -> (size * n, ...). No gradient."""
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a float tensor over the ranks."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def maximum(self, number: int) -> int:
        """The largest ``number`` of all ranks (a host-side message; the device is not involved)."""
        if self.size == 1:
            return number
        value = torch.tensor([number])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return int(value[0])

    def gather_objects(self, item: Any) -> list[Any]:
        """``item`` of every rank, in rank order, on every rank (host-side; for small plain data)."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.control)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto | cpu | cuda`` -> device.

    Raises:
        UserError: ``cuda`` was asked for and no GPU is usable.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "this PyTorch was built without CUDA" if not torch.backends.cuda.is_built() else "no GPU is visible"
        raise UserError(f"device=cuda, but {reason}; use device=cpu or device=auto")
    # A launcher may show each task only its own GPU: then the local rank does not index the visible ones.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextmanager
def join_world(device: str = "auto", timeout_minutes: float = 30) -> Iterator[World]:
    """Join the process group described by torchrun's environment (or be alone), and leave it at the end.

    Raises:
        UserError: the environment is incomplete or the device is absent.
    """
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", 1))
    local_rank = int(environment.get("LOCAL_RANK", 0))
    where = choose_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size == 1:
        yield World(rank=0, size=1, device=where)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(f"WORLD_SIZE={size} but {', '.join(missing)} not set; start several processes with torchrun")
    limit = timedelta(minutes=timeout_minutes)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=limit)
    try:
        control = dist.new_group(backend="gloo", timeout=limit)
        yield World(rank=dist.get_rank(), size=size, device=where, control=control)
    finally:
        dist.destroy_process_group()
