"""Multi-modal distillation: a task takes from the features of all others what a spatial mask lets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpatialAttention(nn.Module):
    """``sigmoid(W F) * (W' F)`` (thesis, equation 5.1), or ``sigmoid(W F) * F`` (equation 3.2); W, W' are 3x3.

    W and W' read the same map: they are run as one convolution with the filters of both. Narrow ones (18 channels at
    the finest scale of a small HRNet) leave most of a vector unit or a GPU idle.

    Args:
        width: channels of F and of the result.
        transform: whether there is a W'.
    """

    def __init__(self, width: int, transform: bool):
        super().__init__()
        self.mask = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.transform = nn.Conv2d(width, width, 3, padding=1, bias=False) if transform else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if isinstance(self.transform, nn.Identity):
            return self.mask(x).sigmoid() * x
        both = F.conv2d(x, torch.cat([self.mask.weight, self.transform.weight]), padding=self.mask.padding)
        mask, transformed = both.chunk(2, dim=1)
        return mask.sigmoid() * transformed


class Distillation(nn.Module):
    """Adds to the features of every main task those of all other tasks, masked.

    Args:
        tasks: the main tasks, which receive.
        sources: all tasks of the front end, which give.
        width: channels of the features.
        transform: see `SpatialAttention`.
    """

    def __init__(self, tasks: Sequence[str], sources: Sequence[str], width: int, transform: bool = True):
        super().__init__()
        self.tasks = nn.ModuleDict()
        for task in tasks:
            others = {other: SpatialAttention(width, transform) for other in sources if other != task}
            self.tasks[task] = nn.ModuleDict(others)

    def forward(self, features: Mapping[str, Tensor], task: str) -> Tensor:
        """Features of all tasks (N, C, H, W) -> distilled features of one main task, of the same shape."""
        result = features[task]
        for other, attention in self.tasks[task].items():
            result = result + attention(features[other])
        return result
