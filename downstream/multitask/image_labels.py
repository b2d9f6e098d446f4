"""Predictions of image-level tasks: in words, and in a table with a line a photo."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyscene.runtime.files import write_text

from .tasks.spec import TaskSpec


def predicts_classes(spec: TaskSpec) -> bool:
    """Whether a task's predictions are classes."""
    return not spec.activate(torch.zeros(1, spec.channels, 1, 1)).is_floating_point()


def image_prediction(spec: TaskSpec, output: Tensor) -> Tensor:
    """Raw output (1, channels, 1, 1) of an image-level task -> (channels,) class probabilities, or activated values."""
    if predicts_classes(spec):
        return output.float().softmax(dim=1).flatten()
    return spec.activate(output).flatten()


def label_of(spec: TaskSpec, values: Tensor) -> tuple[str, float | None]:
    """What an image-level task says of an image, and the probability of that where it is known.

    Args:
        spec: the task.
        values: one class number, class probabilities (see `image_prediction`), or numbers, which have no probability.
    """
    values = values.flatten()
    if not predicts_classes(spec):
        factor, unit = (100, "%") if spec.unit == "%" else (1, f" {spec.unit}" if spec.unit else "")
        return ", ".join(f"{factor * value:.4g}{unit}" for value in values.tolist()), None
    if values.is_floating_point():
        chosen = int(values.argmax())
        return class_name(spec, chosen), float(values[chosen])
    return class_name(spec, int(values)), None


def class_name(spec: TaskSpec, label: int) -> str:
    """The name of a class, or its number where names are not known."""
    return spec.classes[label] if label < len(spec.classes) else f"class {label}"


def write_label_table(
    path: Path, specs: Mapping[str, TaskSpec], predictions: Sequence[tuple[str, Mapping[str, Tensor]]]
) -> None:
    """Write a CSV file with columns ``image``, and for every task ``TASK`` and, of classes, ``TASK_probability``.

    Args:
        path: the file; replaced in one step.
        specs: the image-level tasks.
        predictions: of every photo, its name and task -> `image_prediction`.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["image"]
    for task, spec in specs.items():
        head += [task, f"{task}_probability"] if predicts_classes(spec) else [task]
    writer.writerow(head)
    for image, values in predictions:
        row = [image]
        for task, spec in specs.items():
            label, probability = label_of(spec, values[task])
            row += [label] if probability is None else [label, f"{probability:.4f}"]
        writer.writerow(row)
    write_text(path, text.getvalue())
