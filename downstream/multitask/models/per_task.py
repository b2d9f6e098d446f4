"""Models of tasks that do not touch each other: all that is trained belongs to one task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..heads.build import TaskHeads
from ..rcm.encoder import TaskEncoder
from ..rcm.per_task import TaskModule
from .base import DenseModel, ModelParameters


class TaskEncoderModel(DenseModel):
    """An encoder with parts for every task, the rest of it frozen, and a head for every task.

    A task's loss reaches its own parameters only, so that training tasks together, one after the other or in separate
    jobs from one initial model is the same.
    """

    encoder: TaskEncoder

    def __init__(
        self,
        encoder: TaskEncoder,
        heads: TaskHeads,
        channels: Mapping[str, int],
        head_seed: int = 0,
        image_level: Collection[str] = (),
    ):
        """Add every task of ``channels`` (name -> channels of the output) to an encoder without tasks.

        Tasks named in ``image_level`` have one output an image.
        """
        super().__init__(encoder, heads, head_seed)
        self._alike = not any(isinstance(module, TaskModule) for module in encoder.modules())
        for task, number in channels.items():
            self.add_task(task, number, image_level=task in image_level)

    def task_maps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """A pass of the encoder for every task; one for all, without gradients, where it has no parts of tasks."""
        if self._alike and tasks:
            with torch.no_grad():
                maps = self.encoder(images, tasks[0])
            return dict.fromkeys(tasks, maps)
        return {task: self.encoder(images, task) for task in tasks}

    def add_task(self, task: str, channels: int, seed: int | None = None, image_level: bool = False) -> None:
        """Add a task: its part of the encoder starts as the pretrained network, its head from the seed and its name.

        Args:
            task: a new name.
            channels: of the output.
            seed: of the head; None for the model's ``head_seed``.
            image_level: whether it has one output an image.

        Raises:
            UserError: the name is taken or cannot be used.
        """
        self.encoder.add_task(task)
        self.heads.add_task(task, channels, self.head_seed if seed is None else seed, image_level)
        self.heads.tasks[task].to(self.place())

    def remove_task(self, task: str) -> None:
        """Remove a task with all its parameters.

        Raises:
            UserError: no such task.
        """
        self.encoder.remove_task(task)
        super().remove_task(task)

    def train_only(self, tasks: Iterable[str]) -> None:
        """Ask for gradients of these tasks' parameters, and of no others.

        BatchNorm statistics are not parameters: call the model for these tasks only.

        Raises:
            UserError: no such task.
        """
        chosen = list(tasks)
        self.encoder.train_only(chosen)
        for task, head in self.heads.tasks.items():
            head.requires_grad_(task in chosen)

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """The task's own parameters, for its optimiser.

        Raises:
            UserError: no such task.
        """
        yield from self.encoder.task_parameters(task)
        yield from super().task_parameters(task)

    def parameter_counts(self) -> ModelParameters:
        """The bank and other frozen parameters are shared."""
        encoder = self.encoder.parameter_counts()
        tasks = {task: {**encoder.tasks[task], "head": self.head_parameters(task)} for task in self.tasks}
        return ModelParameters(encoder.bank + encoder.other, 0, tasks)
