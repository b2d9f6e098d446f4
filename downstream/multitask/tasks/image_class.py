"""One class an image, such as the type of a scene: an image-level task, trained beside dense ones.

A task of your own takes a file of a few lines. For built-in scenes, whose names start with what they show:

    from polyscene.downstream.multitask.tasks import image_class


    def read(root, name):
        return name.split("_")[0]  # room_003_c01_l00 -> room


    def task():
        return image_class.task("scene_type", "Scene type", ("room", "street"), read)

and where the classes stand in a CSV file, with lines ``NAME,CLASS`` and an empty class for an image that has none:

    def task():
        classes = ("bedroom", "kitchen", "office")
        return image_class.task("scene_type", "Scene type", classes, image_class.csv_labels("scene_types.csv"))
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from polyscene.runtime.errors import UserError

from ..losses import cross_entropy
from .segmentation import colour
from .spec import Target, TargetGeometry, TaskSpec, class_map, class_problem

ReadLabel = Callable[[Path, str], str | int | None]


def task(name: str, title: str, classes: Sequence[str], read: ReadLabel) -> TaskSpec:
    """Image classification: softmax cross-entropy, judged by the share of images with the right class (top-1).

    Args:
        name: key of the task.
        title: what people call it.
        classes: their names; at least two.
        read: ``(data set's root, image name) ->`` class by name or number; None: the image has no label, and is
            neither trained on nor judged for this task. Of module level, or a `functools.partial` of such.

    Raises:
        ValueError: fewer than two classes, or equal names.
    """
    classes = tuple(classes)
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"task '{name}': classes={classes}, must be two or more different names")
    return TaskSpec(
        name=name,
        title=title,
        channels=len(classes),
        loss=cross_entropy,
        make_metric=partial(_metric, len(classes)),
        metric="accuracy",
        higher_is_better=True,
        unit="%",
        geometry=TargetGeometry(),
        activate=class_map,
        colour=partial(colour, first=1),
        problem=partial(class_problem, classes=len(classes)),
        classes=classes,
        protocol={"classes": len(classes)},
        read=partial(_target, read=read, task=name, classes=classes),
        image_level=True,
    )


def csv_labels(file: str | Path) -> ReadLabel:
    """A ``read`` that looks images up in a CSV file of lines ``NAME,CLASS``.

    Args:
        file: its path; where it is relative, within the data set's root.
    """
    return partial(_csv_label, file=str(file))


def _csv_label(root: Path, name: str, file: str) -> str | None:
    path = root / Path(file).expanduser()
    try:
        table = _csv_table(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); it must hold lines NAME,CLASS") from error
    if name not in table:
        raise UserError(f"'{path}' has no line for '{name}'; add '{name},CLASS', or '{name},' if it has no class")
    return table[name] or None


@lru_cache(maxsize=4)
def _csv_table(path: Path, changed: int) -> Mapping[str, str]:
    """Image name -> class; read once a process, and again when it was ``changed``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is no CSV file in UTF-8 ({error}); it must hold lines NAME,CLASS") from error
    table: dict[str, str] = {}
    for number, row in rows:
        if len(row) != 2:
            raise UserError(f"'{path}', line {number}: {len(row)} entries, expected 2: NAME,CLASS")
        image, label = (entry.strip() for entry in row)
        if table.setdefault(image, label) != label:
            raise UserError(f"'{path}', line {number}: '{image}' is '{label}' here, '{table[image]}' before; keep one")
    return table


def _target(root: Path, name: str, read: ReadLabel, task: str, classes: tuple[str, ...]) -> Target:
    """The class of an image as a map of 1x1."""
    label = read(root, name)
    number = 0 if label is None else _number(label, name, task, classes)
    return Target(torch.tensor([[number]]), torch.tensor([[label is not None]]))


def _number(label: str | int, name: str, task: str, classes: tuple[str, ...]) -> int:
    if isinstance(label, str):
        if label in classes:
            return classes.index(label)
    elif 0 <= int(label) < len(classes):
        return int(label)
    known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    raise UserError(f"task '{task}': '{name}' has the class {label!r}, expected {known} or 0 to {len(classes) - 1}")


def _metric(classes: int) -> Any:
    from ..metrics.classification import ClassificationMetric

    return ClassificationMetric(classes)
