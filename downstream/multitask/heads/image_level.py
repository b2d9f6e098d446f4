"""The head of an image-level task: a linear decoder beside those of the dense tasks.

Thesis, section 5.4 (limitations): image-level tasks need no multi-step multi-scale decoding process, so that a
separate linear decoder after the backbone is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ImageLevelHead(nn.Module):
    """Global average pooling of the coarsest maps, side by side, and a linear layer.

    The layer is a 1x1 convolution called ``prediction``, as the last one of every head is.
    """

    def __init__(self, inputs: Sequence[int], channels: int):
        """Make a head with torch's own initial values.

        Args:
            inputs: width of the maps that are pooled.
            channels: of the output.
        """
        super().__init__()
        self.maps = len(inputs)
        self.prediction = nn.Conv2d(sum(inputs), channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (N, C_s, H_s, W_s), the coarsest last -> (N, channels, 1, 1) float32, whatever the size."""
        pooled = [x.mean(dim=(2, 3), keepdim=True) for x in maps[-self.maps :]]
        return self.prediction(torch.cat(pooled, dim=1)).float()
