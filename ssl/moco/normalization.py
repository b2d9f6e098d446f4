"""Batch-norm groups that keep a query from recognising its key by the company it kept.

A key that shares BatchNorm statistics with its own query leaks its identity. MoCo shuffles the keys over processes,
so that a key is normalised among other images than its query. One process has the same remedy: BatchNorm over groups
of the batch, with the keys permuted before they are grouped. Groups are separate forward passes, which is exactly
BatchNorm over a group, without changing any layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyscene.runtime.errors import UserError

Kind = Literal["auto", "shuffle", "split", "sync"]


@dataclass(frozen=True)
class NormPlan:
    """How one process normalises its batch.

    Attributes:
        kind: ``split``: keys are permuted within the process; ``shuffle``: across all processes; ``sync``: statistics
            over the whole global batch, nothing to permute.
        group: images per BatchNorm group; divides the per-process batch.
    """

    kind: Literal["shuffle", "split", "sync"]
    group: int


def plan_normalization(kind: Kind, group: int, batch: int, processes: int) -> NormPlan:
    """Resolve ``auto`` and check that groups tile the batch.

    Args:
        kind: as in :class:`NormPlan`; ``auto`` is ``split`` for one process and ``shuffle`` for several, with the
            largest group that fits: at most ``group``, and at least two groups over all processes.
        group: wanted images per group.
        batch: images per process (and per accumulation step).
        processes: number of processes.

    Raises:
        UserError: explicit groups that do not divide the batch, or that leave a single group.
    """
    if kind == "sync":
        return NormPlan("sync", batch)
    resolved = kind if kind != "auto" else ("split" if processes == 1 else "shuffle")
    groups_needed = 1 if resolved == "shuffle" and processes > 1 else 2
    if batch < groups_needed:
        raise UserError(f"batch_size gives {batch} image per process; BatchNorm groups need at least {groups_needed}")
    if kind == "auto":
        limit = min(group, batch // groups_needed)
        return NormPlan(resolved, next(g for g in range(limit, 0, -1) if batch % g == 0))
    if batch % group:
        raise UserError(
            f"model.norm.group={group} does not divide the {batch} images per process; "
            f"choose a divisor of {batch} or model.norm.kind=auto"
        )
    if batch // group < groups_needed:
        raise UserError(
            f"model.norm.kind={kind} with group={group} leaves one group for {batch} images, which leaks the key's "
            f"identity; use group={batch // 2} or model.norm.kind=sync"
        )
    return NormPlan(resolved, group)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace BatchNorm by BatchNorm over the batches of all processes; parameters and state-dict keys stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = HostSyncBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            # The same parameter and buffer objects: an optimiser may hold them already.
            replacement._parameters, replacement._buffers = child._parameters, child._buffers
            setattr(module, name, replacement)
        else:
            synchronise(child, device)
    return module


class HostSyncBatchNorm2d(nn.BatchNorm2d):
    """Synchronised BatchNorm for processes on CPUs, where torch's own refuses to work; equal batches per process."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, normalised by the statistics of all processes' inputs."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        moments = torch.cat([x.sum(dim=(0, 2, 3)), (x * x).sum(dim=(0, 2, 3))])
        mean, square = (_AllReduceSum.apply(moments) / count).chunk(2)
        variance = square - mean * mean
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def key_permutation(count: int, seed: int, step: int) -> Tensor:
    """The order (count,) int64 in which keys are grouped at a step; the same on every process and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))
    return torch.randperm(count, generator=generator)


def running_statistics(module: nn.Module) -> Tensor:
    """All BatchNorm running means and variances of a module, as one flat float32 vector."""
    return torch.cat([buffer.detach().flatten().float() for buffer in _statistics(module)])


@torch.no_grad()
def load_running_statistics(module: nn.Module, flat: Tensor) -> None:
    """Write a vector made by :func:`running_statistics` back."""
    buffers = _statistics(module)
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(values.view_as(buffer))


def _statistics(module: nn.Module) -> list[Tensor]:
    return [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
