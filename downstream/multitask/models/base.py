"""What every model of dense tasks is and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyscene.runtime.errors import UserError

from ..heads.build import TaskHeads
from ..heads.image_level import ImageLevelHead


class Outputs(NamedTuple):
    """What a model makes of a batch of images.

    Attributes:
        final: task -> (N, channels, H, W) float32 raw output at the size of the images; (N, channels, 1, 1) of an
            image-level task.
        deep: more outputs to be supervised, each a task -> (N, channels, h, w) of any resolution.
    """

    final: dict[str, Tensor]
    deep: tuple[dict[str, Tensor], ...] = ()


@dataclass(frozen=True)
class ModelParameters:
    """Numbers of parameters. Stored start values of tasks that may come are not counted.

    Attributes:
        shared: parameters that all tasks use.
        shared_trained: how many of these are trained.
        tasks: task -> kind -> parameters of its own: ``modulators``, ``gains``, ``convolutions``, ``norms`` (see
            :class:`..rcm.encoder.ParameterCounts`) and ``head``.
    """

    shared: int
    shared_trained: int
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)

    def of_task(self, task: str) -> int:
        """Parameters of a task's own."""
        return sum(self.tasks[task].values())

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self.shared + sum(self.of_task(task) for task in self.tasks)


class DenseModel(nn.Module):
    """An encoder and a head for every task; subclasses say how the encoder is run.

    In a state dict, all keys of a task's own parts contain ``tasks.NAME.``.

    Attributes:
        encoder: images -> feature maps.
        heads: feature maps -> output, per task.
        head_seed: initial values of a head are a function of this and the task's name.
    """

    def __init__(self, encoder: nn.Module, heads: TaskHeads, head_seed: int):
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.head_seed = head_seed

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they were added."""
        return tuple(self.heads.tasks)

    @property
    def image_level(self) -> tuple[str, ...]:
        """Names of those tasks that have one output an image."""
        return tuple(task for task, head in self.heads.tasks.items() if isinstance(head, ImageLevelHead))

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> Outputs:
        """Run the tasks asked for, and nothing of the others: their BatchNorm statistics stay as they are.

        Args:
            images: (N, 3, H, W) float, normalised by :func:`polyscene.runtime.features.normalise`; any H and W.
            tasks: None for all.

        Raises:
            UserError: no such task.
        """
        chosen = self.tasks if tasks is None else tuple(tasks)
        for task in chosen:
            self.check_present(task)
        size = (images.shape[-2], images.shape[-1])
        maps = self.task_maps(images, chosen)
        return Outputs({task: self.heads(maps[task], task, size) for task in chosen})

    def task_maps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """Task -> its feature maps of normalised images (N, 3, H, W), each (N, C, ceil(H / s), ceil(W / s))."""
        raise NotImplementedError

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters that only this task uses.

        Raises:
            UserError: no such task.
        """
        self.check_present(task)
        yield from self.heads.tasks[task].parameters()

    def parameter_counts(self) -> ModelParameters:
        """Count what the tasks share and what each owns."""
        raise NotImplementedError

    def remove_task(self, task: str) -> None:
        """Remove a task with all that only it uses.

        Raises:
            UserError: no such task.
        """
        self.check_present(task)
        self.heads.remove_task(task)

    def check_present(self, task: str) -> None:
        """Refuse a task that the model does not have.

        Raises:
            UserError: no such task.
        """
        if task not in self.heads.tasks:
            raise UserError(f"task '{task}' is not in this model, which has: {', '.join(self.tasks) or 'none'}")

    def head_parameters(self, task: str) -> int:
        """Number of parameters of a task's head."""
        return sum(parameter.numel() for parameter in self.heads.tasks[task].parameters())

    def place(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device
