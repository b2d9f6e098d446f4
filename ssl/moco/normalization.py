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
from torch import Tensor

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


def key_permutation(count: int, seed: int, step: int) -> Tensor:
    """The order (count,) int64 in which keys are grouped at a step; the same on every process and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))
    return torch.randperm(count, generator=generator)
