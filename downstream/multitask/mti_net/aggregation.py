"""Joining the maps of all scales at the finest one: the head of HRNet, MTI-Net and the baselines (section 5.2.3).

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", 2020, figure 4b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..heads.blocks import ConvNorm, upsample


class ScaleFusion(nn.Module):
    """All maps, resized to the finest, side by side; 1x1 convolution, BatchNorm, ReLU.

    A 1x1 convolution and bilinear resizing are linear and act on different axes: they can change places. In training,
    every map meets its columns of the filters at its own resolution, and the results are resized and added: an eighth
    of the multiplications on HRNet, and nothing is kept of the maps side by side. Evaluation keeps the order of the
    paper, whose operations are the ones that are counted and compared (table 5.6).

    Attributes:
        width: channels of the result: as many as the maps have together.
    """

    def __init__(self, inputs: Sequence[int]):
        super().__init__()
        self.inputs = tuple(inputs)
        self.width = sum(inputs)
        self.join = ConvNorm(self.width, self.width, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_s, H_s, W_s), the finest first -> (N, sum of C_s, H_0, W_0)."""
        size = maps[0].shape[-2:]
        if not self.training:
            return self.join(torch.cat([maps[0], *(upsample(other, size) for other in maps[1:])], dim=1))
        filters = self.join.convolution.weight.split(self.inputs, dim=1)
        total = F.conv2d(maps[0], filters[0])
        for other, columns in zip(maps[1:], filters[1:]):
            total += upsample(F.conv2d(other, columns), size)
        return F.relu(self.join.norm(total), inplace=True)


class AggregationHead(nn.Module):
    """The prediction of one task from its maps at all scales."""

    def __init__(self, inputs: Sequence[int], channels: int):
        """Make a head with torch's own initial values.

        Args:
            inputs: width of every map.
            channels: of the output.
        """
        super().__init__()
        self.fuse = ScaleFusion(inputs)
        self.prediction = nn.Conv2d(self.fuse.width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps, the finest first -> (N, channels, *size) float32 raw output."""
        return upsample(self.prediction(self.fuse(maps)).float(), size)
