"""What a task is: `TaskSpec`, the only place that knows how a task differs from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .affinity import PixelAffinity

_INVALID_COLOUR = 128  # grey: no class, no depth, and the colour of the zero normal


class Target(NamedTuple):
    """The truth of one task for one image; batched with leading N.

    Attributes:
        values: (H, W) int64 for classes; (1, H, W) float32 for edges, saliency and depth; (3, H, W) for normals.
            Finite everywhere; zero where not valid. Of an image-level task H = W = 1, whatever the image's size.
        valid: (H, W) bool, pixels that are trained on and judged.
    """

    values: Tensor
    valid: Tensor


def _unchanged(values: Tensor) -> Tensor:
    return values


def _unchanged_by(values: Tensor, amount: float) -> Tensor:
    return values


def _no_repair(values: Tensor, valid: Tensor) -> Target:
    return Target(values, valid)


def _no_problem(values: Tensor, valid: Tensor) -> str | None:
    return None


@dataclass(frozen=True)
class TargetGeometry:
    """How a task's targets follow their image. The warp moves pixels; these rules change the values that it moved.

    Attributes:
        interpolation: ``nearest``, or ``bilinear`` for continuous values.
        after_rotation: ``(values, degrees)``, the picture was turned counter-clockwise.
        after_flip: ``(values)``, the picture was mirrored left to right.
        after_scale: ``(values, factor)``, the picture was enlarged by the factor.
        repair: ``(values, valid) -> Target`` after all of these: puts back what interpolation broke.
    """

    interpolation: str = "nearest"
    after_rotation: Callable[[Tensor, float], Tensor] = _unchanged_by
    after_flip: Callable[[Tensor], Tensor] = _unchanged
    after_scale: Callable[[Tensor, float], Tensor] = _unchanged_by
    repair: Callable[[Tensor, Tensor], Target] = _no_repair

    def __post_init__(self) -> None:
        if self.interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"interpolation='{self.interpolation}': must be nearest or bilinear")


@dataclass(frozen=True)
class TaskSpec:
    """One task. Functions are of module level (or `functools.partial` of such), so that worker processes get them.

    Attributes:
        name: key of the task in targets, results and configs.
        title: what people call it.
        channels: of the network's output.
        loss: ``(output (N, channels, H, W), values, valid) -> scalar``; batched target.
        make_metric: ``() ->`` a fresh metric with update / merge / compute / state / load_state.
        metric: key of ``compute()`` by which the task is judged.
        higher_is_better: direction of that metric.
        unit: of the metric: ``%`` (a share in [0, 1] shown times 100), ``deg`` or ``m``.
        geometry: how targets follow flips, rotations and scales of the image.
        activate: ``output (N, channels, H, W) -> predictions``: (N, H, W) classes, probabilities or metres, or
            (N, 3, H, W) unit vectors.
        colour: ``values -> (H, W, 3) uint8`` for one image's target values or prediction; see `picture`.
        problem: ``(values, valid) -> None``, or one line that says why a target cannot be right (for `check`).
        classes: class names, where there are classes.
        protocol: choices that make scores comparable or not, recorded beside every result.
        read: ``(data set's root, image name) -> Target``, for a task whose labels the data set does not know.
        source: file a user's task came from; empty for built-in tasks.
        affinity: when the labels of two pixels are similar; None leaves the task out of the affinity analysis.
        image_level: one value an image, not one a pixel: targets and the network's output are maps of 1x1. A task of
            classes (integer ``values``) has logits for output. ``geometry`` is not used, nor is ``colour`` of numbers.
    """

    name: str
    title: str
    channels: int
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    make_metric: Callable[[], Any]
    metric: str
    higher_is_better: bool
    unit: str
    geometry: TargetGeometry
    activate: Callable[[Tensor], Tensor]
    colour: Callable[[Tensor], np.ndarray]
    problem: Callable[[Tensor, Tensor], str | None] = _no_problem
    classes: tuple[str, ...] = ()
    protocol: dict[str, str | float | int] = field(default_factory=dict)
    read: Callable[[Path, str], Target] | None = None
    source: str = ""
    affinity: PixelAffinity | None = None
    image_level: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"task name '{self.name}': use letters, digits and underscores")
        if self.channels < 1:
            raise ValueError(f"task '{self.name}': channels={self.channels}, must be at least 1")
        if self.unit not in ("%", "deg", "m", ""):
            raise ValueError(f"task '{self.name}': unit='{self.unit}', must be %, deg, m or empty")

    def picture(self, values: Tensor, valid: Tensor | None = None) -> np.ndarray:
        """One image's target or activated prediction in colours; pixels that are not valid are grey.

        Args:
            values: (H, W), (1, H, W) or (3, H, W), on any device.
            valid: (H, W) bool; None: all.

        Returns:
            (H, W, 3) uint8.
        """
        drawn = self.colour(values.detach().cpu()).copy()
        if valid is not None:
            drawn[~valid.cpu().numpy()] = _INVALID_COLOUR
        return drawn

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker cannot import the functions of a user's file by name: it loads the file again.
        if self.source:
            from .loading import load_task

            return load_task, (self.source,)
        return TaskSpec, tuple(getattr(self, item.name) for item in fields(self))


def target_size(spec: TaskSpec, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a task's target for an image of ``size``: that size, or 1x1 for an image-level task."""
    return (1, 1) if spec.image_level else size


def plane(values: Tensor) -> Tensor:
    """(H, W) of a one-channel map that may come as (1, H, W)."""
    return values[0] if values.dim() == 3 else values


def grey(values: Tensor) -> np.ndarray:
    """Shares in [0, 1], (H, W) or (1, H, W), as (H, W, 3) uint8: 0 black, 1 white."""
    level = (plane(values).float().clamp(0, 1) * 255).round().to(torch.uint8)
    return level.unsqueeze(-1).expand(-1, -1, 3).numpy()


def probability(output: Tensor) -> Tensor:
    """(N, 1, H, W) logits -> (N, H, W) float32 in [0, 1]."""
    return output[:, 0].float().sigmoid()


def class_map(output: Tensor) -> Tensor:
    """(N, C, H, W) logits -> (N, H, W) int64 classes."""
    return output.argmax(dim=1)


def class_problem(values: Tensor, valid: Tensor, classes: int) -> str | None:
    """What is wrong with a map of ``classes`` classes."""
    if not valid.any():
        return None
    low, high = int(values[valid].min()), int(values[valid].max())
    return None if low >= 0 and high < classes else f"classes {low} to {high}, expected 0 to {classes - 1}"


def binary_problem(values: Tensor, valid: Tensor, most: float) -> str | None:
    """What is wrong with a binary map of which at most the share ``most`` should be positive."""
    if not valid.any():
        return "no valid pixel"
    chosen = plane(values)[valid]
    if float(chosen.min()) < 0 or float(chosen.max()) > 1:
        return f"values {float(chosen.min()):g} to {float(chosen.max()):g}, expected 0 to 1"
    share = float((chosen >= 0.5).float().mean())
    return f"{100 * share:.0f}% of the pixels are positive; is the map inverted?" if share > most else None
