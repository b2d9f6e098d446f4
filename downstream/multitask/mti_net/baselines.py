"""Single-task networks and the multi-task baseline on backbones of several scales."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn

from ..models.base import DenseModel, ModelParameters
from ..models.shared import SharedEncoderModel
from ..rcm.per_task import check_new_task
from .backbones import MultiScaleMaps
from .heads import MultiScaleHeads


def multi_task_baseline(
    encoder: MultiScaleMaps,
    heads: MultiScaleHeads,
    channels: Mapping[str, int],
    head_seed: int = 0,
    image_level: Collection[str] = (),
) -> SharedEncoderModel:
    """One backbone for all tasks, a head for each (thesis, table 5.1, "MTL").

    Tasks named in ``image_level`` have one output an image.

    Raises:
        UserError: a task name that cannot be used.
    """
    return SharedEncoderModel(encoder, heads, channels, head_seed, image_level)


class BackbonePerTask(nn.Module):
    """A copy of a backbone for every task; keys of a task's copy start with ``tasks.NAME.``."""

    def __init__(self, encoder: MultiScaleMaps, tasks: Sequence[str]):
        super().__init__()
        self.channels, self.strides = encoder.channels, encoder.strides
        self.tasks = nn.ModuleDict({task: copy.deepcopy(encoder) for task in tasks})

    def forward(self, images: Tensor, task: str) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> the maps of the task's backbone."""
        return self.tasks[task](images)


class SingleTaskNetworks(DenseModel):
    """A network of its own for every task, side by side in one model: they share nothing."""

    encoder: BackbonePerTask

    def __init__(
        self,
        encoder: MultiScaleMaps,
        heads: MultiScaleHeads,
        channels: Mapping[str, int],
        head_seed: int,
        image_level: Collection[str] = (),
    ):
        """Give every task of ``channels`` (name -> channels of the output) a copy of the backbone and a head.

        Tasks named in ``image_level`` have one output an image.

        Raises:
            UserError: a name that cannot be used.
        """
        for place, task in enumerate(channels):
            check_new_task(task, list(channels)[:place])
        super().__init__(BackbonePerTask(encoder, tuple(channels)).requires_grad_(True), heads, head_seed)
        for task, number in channels.items():
            self.heads.add_task(task, number, head_seed, task in image_level)

    def task_maps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """A pass of its own backbone for every task."""
        return {task: self.encoder(images, task) for task in tasks}

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters of the task's network.

        Raises:
            UserError: no such task.
        """
        yield from super().task_parameters(task)
        yield from self.encoder.tasks[task].parameters()

    def remove_task(self, task: str) -> None:
        """Remove a task's network.

        Raises:
            UserError: no such task.
        """
        super().remove_task(task)
        del self.encoder.tasks[task]

    def parameter_counts(self) -> ModelParameters:
        """Every parameter belongs to a task."""
        return ModelParameters(
            0,
            0,
            {
                task: {
                    "encoder": sum(parameter.numel() for parameter in self.encoder.tasks[task].parameters()),
                    "head": self.head_parameters(task),
                }
                for task in self.tasks
            },
        )
