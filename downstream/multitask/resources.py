"""What a multi-task model costs: parameters and floating-point operations."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .models.base import DenseModel


@dataclass(frozen=True)
class Resources:
    """Costs of a model.

    Attributes:
        parameters: all that the model uses; stored start values of tasks to come are not counted.
        trained: of these, those that ask for a gradient.
        shared: parameters that no task owns.
        tasks: task -> parameters that only it uses.
        flops: floating-point operations of one image, all tasks; a multiply-add counts as two.
        size: (height, width) of that image.
    """

    parameters: int
    trained: int
    shared: int
    tasks: dict[str, int]
    flops: int
    size: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {**asdict(self), "size": list(self.size)}


def measure_resources(model: DenseModel, size: tuple[int, int]) -> Resources:
    """Count parameters, and the operations of all tasks on one image; nothing is computed, the model stays as it is.

    Args:
        model: on any device; ``requires_grad`` as it is trained.
        size: (height, width) of the image.
    """
    counts = model.parameter_counts()
    tasks = {task: counts.of_task(task) for task in model.tasks}
    return Resources(
        parameters=counts.total,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        shared=counts.shared,
        tasks=tasks,
        flops=count_flops(model, size),
        size=(int(size[0]), int(size[1])),
    )


def count_flops(model: DenseModel, size: tuple[int, int]) -> int:
    """Operations of convolutions and matrix products for all tasks of one (3, H, W) image (torch's FLOP counter)."""
    shapes = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()
