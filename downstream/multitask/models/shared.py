"""The multi-task baseline: one encoder, trained by all tasks together, and a head for every task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from polyscene.downstream.backbones import FeatureMaps

from ..heads.build import TaskHeads
from ..rcm.per_task import check_new_task
from .base import DenseModel, ModelParameters


class SharedEncoderModel(DenseModel):
    """All tasks read the same feature maps, which one pass of the encoder makes for every batch."""

    def __init__(
        self,
        encoder: FeatureMaps,
        heads: TaskHeads,
        channels: Mapping[str, int],
        head_seed: int = 0,
        image_level: Collection[str] = (),
    ):
        """Add a head for every task of ``channels`` (name -> channels of the output) to the encoder.

        Tasks named in ``image_level`` have one output an image.

        Raises:
            UserError: a name that cannot be used.
        """
        super().__init__(encoder, heads, head_seed)
        self.encoder.requires_grad_(True)
        for task, number in channels.items():
            check_new_task(task, self.tasks)
            self.heads.add_task(task, number, head_seed, task in image_level)

    def task_maps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """The same maps for all tasks."""
        maps = self.encoder(images)
        return dict.fromkeys(tasks, maps)

    def parameter_counts(self) -> ModelParameters:
        """The whole encoder is shared and trained; only the heads are the tasks' own."""
        shared = sum(parameter.numel() for parameter in self.encoder.parameters())
        return ModelParameters(shared, shared, {task: {"head": self.head_parameters(task)} for task in self.tasks})
