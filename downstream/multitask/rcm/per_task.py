"""Modules with one trained part for every task: the part of a new task starts from a frozen initial one."""

from __future__ import annotations

import copy
from collections.abc import Container

from torch import Tensor, nn

from polyscene.runtime.errors import UserError


def check_new_task(task: str, present: Container[str]) -> None:
    """Refuse a name that cannot be a part of state dict keys, or is among those present.

    Raises:
        UserError: the name is taken or cannot be used.
    """
    if not task.isidentifier() or hasattr(nn.ModuleDict, task):
        raise UserError(f"'{task}' cannot be the name of a task; use letters, digits and _")
    if task in present:
        raise UserError(f"task '{task}' is already in this model; choose another name or remove it first")


class TaskModule(nn.Module):
    """A module of which every task owns a part; called with the task's name.

    In a state dict, the keys of a task's part contain ``tasks.NAME.``; all others are shared between the tasks and
    never trained.

    Attributes:
        initial: the part a new task starts from; frozen, so that tasks can be added at any time.
        tasks: task name -> its part.
        kind: what the parts are, for counting parameters.
    """

    kind = ""

    def __init__(self, initial: nn.Module):
        super().__init__()
        self.initial = initial.requires_grad_(False)
        self.tasks = nn.ModuleDict()

    def add_task(self, task: str, copy_from: str | None = None) -> None:
        """Add a part: a copy of the initial one, or of that of another task as it is now."""
        source = self.initial if copy_from is None else self.tasks[copy_from]
        self.tasks[task] = copy.deepcopy(source).requires_grad_(True).train(self.training)

    def remove_task(self, task: str) -> None:
        """Drop the task's part."""
        del self.tasks[task]

    def parameter_counts(self, task: str) -> dict[str, int]:
        """Kind -> number of parameters of the task's part."""
        return {self.kind: sum(parameter.numel() for parameter in self.tasks[task].parameters())}


class TaskNorm(TaskModule):
    """A BatchNorm for every task: affine parameters and running statistics."""

    kind = "norms"

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(copy.deepcopy(norm))

    def forward(self, x: Tensor, task: str) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return self.tasks[task](x)


class TaskConvolution(TaskModule):
    """A whole convolution for every task."""

    kind = "convolutions"

    def __init__(self, convolution: nn.Conv2d):
        super().__init__(copy.deepcopy(convolution))
        self.stride, self.padding = convolution.stride, convolution.padding
        self.dilation, self.groups = convolution.dilation, convolution.groups

    def forward(self, x: Tensor, task: str) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.tasks[task](x)

    def merged(self, task: str) -> tuple[Tensor, None]:
        """The task's convolution: (C_out, C_in / groups, k, k) float64, and no bias."""
        return self.tasks[task].weight.detach().double(), None
