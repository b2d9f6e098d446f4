"""Atrous spatial pyramid pooling, and the head of DeepLabv3 that it makes.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import ConvNorm, PooledNorm, upsample

RATES = (6, 12, 18)
"""Dilation of the 3x3 branches on maps of stride 16."""


def rates_at(stride: int) -> tuple[int, ...]:
    """The rates that see the same part of the image at another stride: doubled at 8 (section 4.1 of the paper).

    Raises:
        ValueError: not 8, 16 or 32.
    """
    if stride not in (8, 16, 32):
        raise ValueError(f"stride={stride}: the rates of ASPP are known for 8, 16 and 32")
    return tuple(rate * 16 // stride for rate in RATES)


class ASPP(nn.Module):
    """1x1, three dilated 3x3 and a pooled branch side by side, joined by a 1x1 convolution; no dropout."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int] = RATES):
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvNorm(inputs, width, 1), *(ConvNorm(inputs, width, 3, dilation=rate) for rate in rates)]
        )
        self.pooled = ConvNorm(inputs, width, 1)
        self.pooled.norm = PooledNorm(width)
        self.join = ConvNorm((len(rates) + 2) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        maps = [branch(x) for branch in self.branches]
        image = self.pooled(x.mean(dim=(2, 3), keepdim=True))
        # A sum and not expand(): torch.cat would give up channels_last for a map that was expanded from 1x1.
        maps.append(torch.zeros_like(maps[0]) + image)
        return self.join(torch.cat(maps, dim=1))


class ASPPHead(nn.Module):
    """DeepLabv3: ASPP on the last stage, one 3x3 convolution, prediction at the map's stride."""

    layers = ("layer4",)

    def __init__(self, inputs: Sequence[int], strides: Sequence[int], channels: int, width: int):
        """Make a head with torch's own initial values.

        Args:
            inputs: width of the map of every stage in `layers`.
            strides: image pixels per cell of these maps.
            channels: of the output.
            width: of all layers between.
        """
        super().__init__()
        self.aspp = ASPP(inputs[0], width, rates_at(strides[0]))
        self.refine = ConvNorm(width, width, 3)
        self.prediction = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps of the stages in `layers` -> (N, channels, *size) float32 raw output."""
        return upsample(self.prediction(self.refine(self.aspp(maps[0]))).float(), size)
