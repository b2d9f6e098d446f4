"""The Feature Propagation Module: what the tasks learnt at a coarse scale, for the next finer one.

Thesis, section 5.2.2 and figure 5.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from .blocks import basic_block

SOFTMAXES = ("tasks", "published")
NARROWING = 4
"""Channels per channel within the function f, in the published code."""
REDUCTION = 16
"""Channels per channel of the squeeze-and-excitation's bottleneck (Hu et al., 2018, section 6.4)."""


class FeaturePropagation(nn.Module):
    """Refines the features of all tasks at one scale from a representation that they share.

    Args:
        tasks: names; all tasks of the front end.
        width: channels C of every task's features.
        softmax: ``tasks``: attention over the tasks for every channel, as the thesis has it. ``published``: as in the
            published code, which views the same channels in another order, so that the attention runs over groups of
            as many adjacent channels as there are tasks, mostly of one task.
        narrowing: by how much the function f has fewer channels within than it is given. The thesis leaves f open:
            the published code has 4, and the costs in table 5.6 are those of 1.

    Raises:
        ValueError: an unknown ``softmax``, or a ``narrowing`` below 1.
    """

    def __init__(self, tasks: Sequence[str], width: int, softmax: str = "tasks", narrowing: int = NARROWING):
        super().__init__()
        if softmax not in SOFTMAXES:
            raise ValueError(f"softmax={softmax}: choose {' or '.join(SOFTMAXES)}")
        if narrowing < 1:
            raise ValueError(f"narrowing={narrowing}: give 1 or more")
        self.softmax = softmax
        joined = len(tasks) * width
        narrow = max(1, joined // narrowing)
        self.attention = nn.Sequential(
            basic_block(joined, narrow), basic_block(narrow, narrow), nn.Conv2d(narrow, joined, 1)
        )
        self.reduce = basic_block(joined, width)
        self.gates = nn.ModuleDict({task: SqueezeExcitation(width, max(1, width // REDUCTION)) for task in tasks})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of all tasks (N, C, H, W) -> refined ones of the same shape."""
        joined = torch.cat([features[task] for task in self.gates], dim=1)
        shared = self.reduce(joined * self.mask(joined))
        squeezed = shared.mean(dim=(2, 3), keepdim=True)
        return {
            task: torch.addcmul(features[task], shared, _excitation(gate, squeezed))
            for task, gate in self.gates.items()
        }

    def mask(self, joined: Tensor) -> Tensor:
        """Joined features (N, tasks * C, H, W) -> attention of the same shape: of every channel of every task.

        With ``tasks`` it sums to 1 over the tasks, for every one of the C channels and every pixel.
        """
        # Channels last, so that neither the view nor the softmax changes the memory format of the convolutions.
        scores = self.attention(joined).permute(0, 2, 3, 1).float()
        count = len(self.gates)
        if self.softmax == "tasks":
            mask = scores.unflatten(-1, (count, -1)).softmax(dim=-2)
        else:
            mask = scores.unflatten(-1, (-1, count)).softmax(dim=-1)
        return mask.flatten(-2).permute(0, 3, 1, 2).to(joined.dtype)


def _excitation(gate: SqueezeExcitation, squeezed: Tensor) -> Tensor:
    """The factors of a gate, (N, C, 1, 1); all gates see the same map, whose means are taken once."""
    return gate.scale_activation(gate.fc2(gate.activation(gate.fc1(squeezed))))
