"""The heads of all tasks that read maps of several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..heads.image_level import ImageLevelHead
from .blocks import initialise_by_name


class MultiScaleHeads(nn.Module):
    """One head for every task; keys of a task's head start with ``tasks.NAME.``.

    Args:
        make: channels of the output -> a head for a dense task, which is called with maps and the size (height, width)
            of the output and whose last layer is called ``prediction``.
        inputs: width of every map of the backbone. Heads of image-level tasks pool them all: maps of a pyramid and
            branches of an HRNet are outputs side by side, and those that nobody read would not be trained.
    """

    def __init__(self, make: Callable[[int], nn.Module], inputs: Sequence[int]):
        super().__init__()
        self.make = make
        self.inputs = tuple(inputs)
        self.tasks = nn.ModuleDict()

    def add_task(self, task: str, channels: int, seed: int, image_level: bool = False) -> None:
        """Add a head, on the CPU; its initial values depend on the seed, the task's name and the shapes alone."""
        with torch.random.fork_rng(devices=[]):  # random values that are overwritten
            head = ImageLevelHead(self.inputs, channels) if image_level else self.make(channels)
        initialise_by_name(head, f"heads.tasks.{task}", seed)
        self.tasks[task] = head.train(self.training)

    def remove_task(self, task: str) -> None:
        """Drop the task's head."""
        del self.tasks[task]

    def forward(self, maps: Sequence[Tensor], task: str, size: tuple[int, int]) -> Tensor:
        """The task's maps, the finest first -> its raw output (N, channels, *size) float32; 1x1 at the image level."""
        return self.tasks[task](maps, size)
