"""The front end at one scale: features of every task, main and auxiliary, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..heads.blocks import upsample


class FrontEnd(nn.Module):
    """Two residual blocks and a 1x1 prediction for every task.

    Args:
        channels: task -> channels of its output; all tasks of the front end.
        inputs: channels of the backbone's map.
        carried: channels of the features that come from the next coarser scale; 0 for none.
        width: channels of the features of a task.
        block: makes a residual block from its numbers of input and output channels.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        inputs: int,
        carried: int,
        width: int,
        block: Callable[[int, int], nn.Module],
    ):
        super().__init__()
        self.refine = nn.ModuleDict(
            {task: nn.Sequential(block(inputs + carried, width), block(width, width)) for task in channels}
        )
        self.prediction = nn.ModuleDict({task: nn.Conv2d(width, number, 1) for task, number in channels.items()})

    def forward(self, image_map: Tensor, carried: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Make the features of all tasks.

        Args:
            image_map: (N, inputs, H, W) of the backbone.
            carried: task -> (N, carried, h, w) of the coarser scale; resized (bilinear).

        Returns:
            Task -> (N, width, H, W).
        """
        features = {}
        for task, refine in self.refine.items():
            parts = [image_map] if carried is None else [image_map, upsample(carried[task], image_map.shape[-2:])]
            features[task] = refine(torch.cat(parts, dim=1))
        return features

    def predict(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of all tasks (N, width, H, W) -> initial predictions (N, channels, H, W) float32."""
        return {task: layer(features[task]).float() for task, layer in self.prediction.items()}
