"""One strip for the eye: a photo and the coloured predictions of all tasks, with titles and what the colours mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .image_labels import class_name, label_of, predicts_classes
from .tasks.spec import TaskSpec

PANEL = 400
"""Longer side of a panel, pixels; smaller photos are enlarged to it."""

CLASSES_SHOWN = 6
NARROWEST = 150  # room for the titles of narrow photos
_GAP, _TITLE, _LINE = 8, 24, 19
_PAPER, _INK = (255, 255, 255), (25, 25, 25)


class Key(NamedTuple):
    """A line below a panel.

    Attributes:
        text: what it says.
        colour: of the small square before it.
    """

    text: str
    colour: tuple[int, ...]


class Panel(NamedTuple):
    """A picture of the strip.

    Attributes:
        title: above it.
        picture: (H, W, 3) uint8.
        keys: below it.
        blend: its colours may be mixed; those of classes may not, a mixture would mean another class.
    """

    title: str
    picture: np.ndarray
    keys: Sequence[Key] = ()
    blend: bool = True


def draw_overview(
    photo: np.ndarray,
    name: str,
    pictures: Mapping[str, np.ndarray],
    predictions: Mapping[str, Tensor],
    specs: Mapping[str, TaskSpec],
) -> Image.Image:
    """Put a photo and its coloured predictions side by side.

    Below a task of classes stand the largest ones with their colours and shares; below one in metres the least and
    the most. What image-level tasks say stands below the photo.

    Args:
        photo: (H, W, 3) uint8.
        name: of the photo.
        pictures: task -> (H, W, 3) uint8, of the dense tasks.
        predictions: task -> what the picture shows; of image-level tasks see `label_of`.
        specs: the tasks.
    """
    captions = [image_key(spec, predictions[task]) for task, spec in specs.items() if spec.image_level]
    panels = [Panel(name, photo, captions)]
    for task, picture in pictures.items():
        values = predictions[task]
        panels.append(
            Panel(specs[task].title, picture, task_keys(specs[task], values), blend=values.is_floating_point())
        )
    return draw_strip(panels)


def image_key(spec: TaskSpec, values: Tensor) -> Key:
    """A line that says what an image-level task says of an image.

    Args:
        spec: the task.
        values: see `label_of`.
    """
    label, probability = label_of(spec, values)
    shown = "" if probability is None else f" {round(100 * probability)}%"
    colour = _PAPER
    if predicts_classes(spec):
        colour = _colour(spec, int(values.argmax() if values.is_floating_point() else values))
    return Key(f"{spec.title}: {label}{shown}", colour)


def task_keys(spec: TaskSpec, values: Tensor) -> list[Key]:
    """What the colours of a prediction mean: its largest classes, or its least and most metres; empty for other tasks.

    Args:
        spec: the task.
        values: prediction, see :class:`TaskSpec`.
    """
    if not values.is_floating_point():
        counts = torch.bincount(values.flatten(), minlength=1)
        keys = []
        for label in counts.argsort(descending=True, stable=True)[:CLASSES_SHOWN].tolist():
            share = int(counts[label]) / values.numel()
            if share == 0:
                break
            title = class_name(spec, label)
            keys.append(Key(f"{title} {'<1' if share < 0.01 else round(100 * share)}%", _colour(spec, label)))
        return keys
    if spec.unit == "m":
        return [Key(f"{metres:.1f} m", _colour(spec, metres)) for metres in (float(values.min()), float(values.max()))]
    return []


def _colour(spec: TaskSpec, value: float) -> tuple[int, ...]:
    return tuple(spec.picture(torch.tensor([[value]]))[0, 0].tolist())


def draw_strip(panels: Sequence[Panel]) -> Image.Image:
    """Panels of one size side by side, each with its title and keys."""
    height, width = panels[0].picture.shape[:2]
    scale = PANEL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    column = max(size[0], NARROWEST)
    lines = max(len(panel.keys) for panel in panels)
    foot = lines * _LINE + _GAP if lines else 0
    sheet = Image.new("RGB", (len(panels) * (column + _GAP) + _GAP, _TITLE + size[1] + foot + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for number, panel in enumerate(panels):
        left, bottom = _GAP + number * (column + _GAP), _TITLE + size[1] + _GAP
        draw.text((left, 3), _shortened(panel.title, font, column), fill=_INK, font=font)
        method = Image.Resampling.LANCZOS if panel.blend else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(panel.picture).resize(size, method), (left, _TITLE))
        for row, key in enumerate(panel.keys):
            _draw_key(draw, key, (left, bottom + row * _LINE), column, small)
    return sheet


def _draw_key(
    draw: ImageDraw.ImageDraw, key: Key, corner: tuple[int, int], width: int, font: ImageFont.FreeTypeFont
) -> None:
    left, top = corner
    draw.rectangle((left, top + 2, left + 12, top + 14), fill=key.colour, outline=(120, 120, 120))
    draw.text((left + 18, top), _shortened(key.text, font, width - 18), fill=_INK, font=font)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut at its end until it is at most ``width`` pixels long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
