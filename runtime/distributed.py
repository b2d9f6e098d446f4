"""Which process am I, on which device, and how the processes of one run talk.

One process, ``torchrun`` and cluster launchers look the same to the rest of the package: a :class:`World`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError
from .files import write_text
from .job_variables import RENDEZVOUS


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
    """Join the process group that torchrun or a cluster's job describes (or be alone), and leave it at the end.

    Raises:
        UserError: the environment is incomplete or the device is absent.
        ConnectionError: the processes of a job do not find each other.
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
    meeting = environment.get(RENDEZVOUS)
    needed = ("RANK",) if meeting else ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(f"WORLD_SIZE={size} but {', '.join(missing)} not set; start several processes with torchrun")
    limit = timedelta(minutes=timeout_minutes)
    backend = "nccl" if where.type == "cuda" else "gloo"
    if meeting:
        rank = int(environment["RANK"])
        store = meet(Path(meeting), rank, size, limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    else:
        dist.init_process_group(backend, timeout=limit)
    try:
        control = dist.new_group(backend="gloo", timeout=limit)
        yield World(rank=dist.get_rank(), size=size, device=where, control=control)
    except BaseException:
        # NCCL would first finish what is under way, for ever if the other processes do not get that far, and nobody
        # would read the error. When this process ends, it lets go of everything at once.
        if backend != "nccl":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def meet(file: Path, rank: int, size: int, limit: timedelta) -> dist.TCPStore:
    """The store through which the processes of a run find each other, without a port agreed on before.

    Rank 0 listens on a port that the system chooses, so that it can collide with nobody's, and writes its addresses
    into ``file`` on a file system that all ranks see; the others wait for the file.

    Args:
        file: of this attempt of the run alone; an earlier attempt's must not be there.
        rank: of this process.
        size: number of processes.
        limit: how long to wait.

    Raises:
        ConnectionError: rank 0 was not found in time.
    """
    if rank == 0:
        store = dist.TCPStore("0.0.0.0", 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        write_text(file, json.dumps({"hosts": _own_names(), "port": store.port}))
        return store
    end = time.monotonic() + limit.total_seconds()
    tried = ""
    while time.monotonic() < end:
        # Listing the folder makes network file systems look again for a file that was absent a moment ago.
        if file.name in os.listdir(file.parent):
            place = json.loads(file.read_text())
            for host in place["hosts"]:
                if _answers(host, place["port"]):
                    return dist.TCPStore(host, place["port"], size, is_master=False, timeout=limit)
            tried = f" ({', '.join(place['hosts'])}, port {place['port']} do not answer)"
        time.sleep(0.1)
    raise ConnectionError(f"rank {rank} did not find rank 0{tried} within {limit}; can the nodes reach each other?")


def _own_names() -> list[str]:
    """What other machines may know this one by, best first: its name in the cluster, its host name, its addresses."""
    host = socket.gethostname()
    names = [os.environ.get("SLURMD_NODENAME", ""), host]
    with suppress(OSError):
        names += [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)]
    return list(dict.fromkeys(name for name in names if name))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
