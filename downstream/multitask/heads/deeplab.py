"""The decoder of DeepLabv3+, which RCM gives to every task.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018, section
3.1 and figure 2; with plain convolutions, without dropout and squeeze-and-excitation (RCM, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .aspp import ASPP, rates_at
from .blocks import ConvNorm, upsample

LOW_LEVEL_SHARE = 48 / 256
"""Width of the low-level features over that of the others (section 4.1)."""


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the last stage, joined at a quarter of the resolution with low-level features; two 3x3, prediction."""

    layers = ("layer1", "layer4")

    def __init__(self, inputs: Sequence[int], strides: Sequence[int], channels: int, width: int):
        """Make a head with torch's own initial values.

        Args:
            inputs: width of the map of every stage in `layers`.
            strides: image pixels per cell of these maps.
            channels: of the output.
            width: of all layers between; low-level features get 48 for 256.
        """
        super().__init__()
        low = max(1, round(width * LOW_LEVEL_SHARE))
        self.aspp = ASPP(inputs[1], width, rates_at(strides[1]))
        self.low_level = ConvNorm(inputs[0], low, 1)
        self.refine = nn.Sequential(ConvNorm(width + low, width, 3), ConvNorm(width, width, 3))
        self.prediction = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps of the stages in `layers` -> (N, channels, *size) float32 raw output."""
        low = self.low_level(maps[0])
        high = upsample(self.aspp(maps[1]), low.shape[-2:])
        return upsample(self.prediction(self.refine(torch.cat([high, low], dim=1))).float(), size)
