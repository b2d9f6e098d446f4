"""When the labels of two pixels count as similar: what the affinity analysis asks of a task (`TaskSpec.affinity`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError


@dataclass(frozen=True)
class PixelAffinity:
    """How alike two pixels are in one task's labels.

    Attributes:
        difference: ``(values, values) -> (H, W)`` of two equally large cuts of a target's values: float, at least 0 and
            symmetric; or bool (they differ), where ``threshold`` is None. Of module level.
        threshold: pairs with a smaller difference are similar; None where there is nothing to choose.
        rule: the difference in words.
    """

    difference: Callable[[Tensor, Tensor], Tensor]
    threshold: float | None
    rule: str

    def similar(self, first: Tensor, second: Tensor) -> Tensor:
        """Which pixels of two cuts of a target are similar, (H, W) bool."""
        difference = self.difference(first, second)
        return ~difference if self.threshold is None else difference < self.threshold

    def with_threshold(self, threshold: float, task: str) -> PixelAffinity:
        """The same with another threshold.

        Raises:
            UserError: not above 0, or the task ``task`` has none.
        """
        if self.threshold is None:
            raise UserError(f"thresholds.{task}: task '{task}' has no threshold ({self.rule}); leave it out")
        if not threshold > 0:
            raise UserError(f"thresholds.{task}={threshold} must be greater than 0")
        return PixelAffinity(self.difference, float(threshold), self.rule)


def other_class(first: Tensor, second: Tensor) -> Tensor:
    """Whether classes (H, W) differ."""
    return first != second


def other_side(first: Tensor, second: Tensor) -> Tensor:
    """Whether of two shares (1, H, W) one is at least a half and the other is not."""
    return ((first >= 0.5) != (second >= 0.5))[0]


def relative_difference(first: Tensor, second: Tensor) -> Tensor:
    """``|a - b| / max(a, b)`` of positive values (1, H, W); in [0, 1), the same at every distance."""
    return ((first - second).abs() / torch.maximum(first, second))[0]


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Degrees between unit vectors (3, H, W)."""
    # By the chord, since the arc cosine of a dot product near 1 loses half of the digits.
    chord = (first - second).square().sum(dim=0).sqrt()
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1)))


SAME_CLASS = PixelAffinity(other_class, None, "the same class")
SAME_SIDE = PixelAffinity(other_side, None, "both or none at least 0.5")
SIMILAR_DEPTH = PixelAffinity(relative_difference, 0.1, "|a - b| / max(a, b)")
SIMILAR_DIRECTION = PixelAffinity(angle, 22.5, "angle in degrees")
"""22.5 degrees: one of the three error bounds that normals are customarily judged by."""
