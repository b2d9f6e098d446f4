"""The semantic head of Panoptic FPN, for baselines on feature pyramids.

Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.1 and figure 3. The thesis does not name the
heads of its FPN baselines; parameters and operations of this one are those of its table 5.6b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..heads.blocks import upsample

WIDTH = 128
_GROUPS = 32


class SemanticFPNHead(nn.Module):
    """Every map goes up to the finest one by 3x3 convolutions and doublings; their sum is predicted from."""

    def __init__(self, inputs: Sequence[int], strides: Sequence[int], channels: int, width: int = WIDTH):
        """Make a head with torch's own initial values.

        Args:
            inputs: width of every map.
            strides: image pixels per cell of every map, ascending.
            channels: of the output.
            width: of all layers between.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.climb = nn.ModuleList()
        for number, stride in zip(inputs, strides):
            steps = max(1, round(math.log2(stride / strides[0])))
            self.climb.append(nn.ModuleList([_Step(number if k == 0 else width, width) for k in range(steps)]))
        self.prediction = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps, the finest first -> (N, channels, *size) float32 raw output."""
        total: Tensor | None = None
        for x, stride, steps in zip(maps, self.strides, self.climb):
            for step in steps:
                x = step(x)
                stride = max(stride // 2, self.strides[0])
                x = _resized(x, size, stride)
            total = x if total is None else total + x
        return upsample(self.prediction(total).float(), size)


class _Step(nn.Module):
    """3x3 convolution, GroupNorm, ReLU."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, width), width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(x)))


def _resized(x: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    wanted = (-(-size[0] // stride), -(-size[1] // stride))
    return x if tuple(x.shape[-2:]) == wanted else upsample(x, wanted)
