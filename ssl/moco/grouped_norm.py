"""BatchNorm over groups of a batch within one forward pass: all groups go through the other layers together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` which, within :func:`joined_groups`, normalises every group of a batch by itself.

    Attributes:
        groups: equal runs of a batch that are normalised separately; 1 outside of :func:`joined_groups`.
        seen: means and variances, (groups, C) each, of the batches since its beginning.
    """

    groups: int = 1
    seen: tuple[tuple[Tensor, Tensor], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(groups * n, C, H, W) -> the same shape."""
        if self.groups == 1 or not self.training:
            return super().forward(x)
        # Running statistics that start from 0 and forget everything are those of the batch.
        mean, variance = self.running_mean.new_zeros((2, self.groups, x.shape[1]))
        self.seen = (*self.seen, (mean, variance))
        parts = [
            F.batch_norm(part, m, v, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, m, v in zip(x.chunk(self.groups), mean, variance)
        ]
        return torch.cat(parts)


def group_norms(module: nn.Module) -> None:
    """Let the BatchNorm layers of a module know groups; parameters, statistics and state-dict keys stay."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d and layer.momentum is not None and layer.track_running_stats:
            layer.__class__ = GroupedBatchNorm2d


def knows_groups(module: nn.Module) -> bool:
    """Whether all BatchNorm layers of a module can keep groups apart."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return bool(norms) and all(isinstance(layer, GroupedBatchNorm2d) for layer in norms)


@contextmanager
def joined_groups(module: nn.Module, groups: int) -> Iterator[None]:
    """Within, a batch for ``module`` consists of groups, which its BatchNorm layers keep apart.

    At the end the running statistics move as if the groups had gone through one after another, each with all its
    batches (if there are several, they are of different image sizes).

    Args:
        module: whose BatchNorm layers are :class:`GroupedBatchNorm2d`.
        groups: number of equal runs of every batch.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, GroupedBatchNorm2d)]
    for norm in norms:
        norm.groups, norm.seen = groups, ()
    try:
        yield
        _move_running_statistics(norms, groups)
    finally:
        for norm in norms:
            norm.groups, norm.seen = 1, ()


@torch.no_grad()
def _move_running_statistics(norms: list[GroupedBatchNorm2d], groups: int) -> None:
    for norm in norms:
        norm.num_batches_tracked.add_(groups * len(norm.seen))
        for group in range(groups):
            for mean, variance in norm.seen:
                norm.running_mean.lerp_(mean[group], norm.momentum)
                norm.running_var.lerp_(variance[group], norm.momentum)
