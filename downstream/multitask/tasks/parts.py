"""Human parts: background and six parts of people, judged on images with annotated people only."""

from __future__ import annotations

from .segmentation import class_task
from .spec import TaskSpec

PART_NAMES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")


def task() -> TaskSpec:
    """Human parts segmentation, seven classes with background."""
    return class_task("parts", "Human parts", len(PART_NAMES), PART_NAMES, background=True)
