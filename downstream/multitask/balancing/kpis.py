"""Key performance indicators of a batch: shares in [0, 1] of what a network has right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError

from ..models.base import Outputs
from ..tasks.spec import Target, TaskSpec

DEGREES = 30.0  # an angle of normals below which a pixel counts as right
RATIO = 1.25  # of depths, likewise


def check_kpis(specs: Mapping[str, TaskSpec]) -> None:
    """Refuse tasks of which nobody knows when a pixel is right.

    Raises:
        UserError: naming the task.
    """
    for name, spec in specs.items():
        if spec.unit not in ("%", "deg", "m"):
            raise UserError(f"task '{name}' has no unit (%, deg or m), so that DTP cannot tell right from wrong pixels")


@torch.no_grad()
def batch_kpis(
    outputs: Outputs, targets: Mapping[str, Target], specs: Mapping[str, TaskSpec], tasks: Sequence[str], world: World
) -> Tensor:
    """(T,) KPI of every task on the global batch; NaN where it has nothing to judge. A collective call.

    Of classes: share of right pixels. Of edges and saliency: F-measure of the pixels at probability 0.5, without
    tolerance. Of normals and depth, thresholded errors (thesis, section 3.2.1): share of pixels within `DEGREES`, and
    within a factor of `RATIO`.

    Args:
        outputs: of the model. A task without a final output is judged by its last deep one.
        targets: task -> batched target.
        specs: task -> what it is.
        tasks: in the order of the result.
        world: the processes; counts are summed over them.
    """
    counts = []
    for name in tasks:
        maps = [level[name] for level in (outputs.final, *reversed(outputs.deep)) if name in level]
        values, valid = targets[name]
        output = maps[0].float()
        if output.shape[-2:] != valid.shape[-2:]:
            output = F.interpolate(output, valid.shape[-2:], mode="bilinear", align_corners=False)
        counts.append(_right_of_all(output, values, valid, specs[name]))
    right, judged = world.mean(torch.stack(counts)).unbind(1)
    return right / judged


def _right_of_all(output: Tensor, values: Tensor, valid: Tensor, spec: TaskSpec) -> Tensor:
    """(2,) float: how much is right, of how much; zeros where nothing can be judged."""
    predicted = spec.activate(output)
    if not values.is_floating_point():
        right = (predicted == values) & valid
    elif spec.unit == "deg":
        right = ((predicted * values).sum(dim=1) > math.cos(math.radians(DEGREES))) & valid
    elif spec.unit == "m":
        true = values[:, 0]
        right = (predicted < true * RATIO) & (predicted * RATIO > true) & valid
    else:
        found = (predicted >= 0.5) & valid
        wanted = (values[:, 0] >= 0.5) & valid
        return torch.stack([2 * (found & wanted).sum(), found.sum() + wanted.sum()]).float()
    return torch.stack([right.sum(), valid.sum()]).float()
