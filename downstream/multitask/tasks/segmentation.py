"""Semantic segmentation: one class per pixel, mean IoU over all classes (void excluded)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from polyscene.downstream.scenes.classes import palette

from ..losses import cross_entropy
from .affinity import SAME_CLASS
from .spec import TargetGeometry, TaskSpec, class_map, class_problem, plane


def task(classes: int = 21, names: tuple[str, ...] = (), background: bool = True) -> TaskSpec:
    """Semantic segmentation.

    Args:
        classes: number of classes, background included where there is one.
        names: of the classes; may be empty.
        background: class 0 is background, drawn black; else black is never used.
    """
    return class_task("segmentation", "Semantic segmentation", classes, names, background)


def class_task(name: str, title: str, classes: int, names: tuple[str, ...], background: bool) -> TaskSpec:
    """A task of one class per pixel, whatever the classes are."""
    if names and len(names) != classes:
        raise ValueError(f"{len(names)} names for {classes} classes")
    return TaskSpec(
        name=name,
        title=title,
        channels=classes,
        loss=cross_entropy,
        make_metric=partial(_metric, classes),
        metric="miou",
        higher_is_better=True,
        unit="%",
        geometry=TargetGeometry("nearest"),
        activate=class_map,
        colour=partial(colour, first=0 if background else 1),
        problem=partial(class_problem, classes=classes),
        classes=names,
        protocol={"classes": classes},
        affinity=SAME_CLASS,
    )


def colour(values: Tensor, first: int) -> np.ndarray:
    """(H, W) classes in the PASCAL VOC colours, (H, W, 3) uint8; class 0 has the colour number ``first``."""
    return palette()[(plane(values).numpy().astype(np.int64) + first) % 256]


def _metric(classes: int) -> Any:
    from ..metrics.segmentation import SegmentationMetric

    return SegmentationMetric(classes)
