"""Pages of photos with maps drawn over them, a column a backbone and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from polyscene.runtime.files import atomic_writer

CELL = 2.1  # inches a column
LINE = 0.19  # inches a line of text
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Row:
    """One photo and its maps.

    Attributes:
        photo: (3, H, W) uint8.
        title: the line under the photo.
        maps: (n, H, W) in [0, 1], a map a column.
        titles: the lines under the maps.
    """

    photo: Tensor
    title: str
    maps: Tensor
    titles: Sequence[str]


def overlay(photo: Tensor, values: Tensor, colours: str, alpha: float) -> Tensor:
    """A map's colours over the grey photo: ``alpha * colour + (1 - alpha) * grey``.

    The photo becomes grey and loses half its contrast: hue belongs to the map alone, and lightness mostly, which rises
    along the colour maps offered, so that a grey print still tells high from low.

    Args:
        photo: (3, H, W) uint8.
        values: (H, W) in [0, 1].
        colours: a matplotlib colour map.
        alpha: weight of the colours, in [0, 1].

    Returns:
        (3, H, W) uint8.
    """
    tint = torch.from_numpy(np.ascontiguousarray(colormaps[colours](values.numpy())[..., :3])).permute(2, 0, 1)
    grey = (photo.double() * torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)).sum(dim=0)
    grey = 127.5 + 0.5 * (grey - 127.5)
    return (255 * alpha * tint + (1 - alpha) * grey).round().to(torch.uint8)


def draw_page(rows: Sequence[Row], headings: Sequence[str], path: Path, *, colours: str, alpha: float) -> None:
    """Write a PNG: photo and overlays of every row under column headings, and the colours' meaning.

    Args:
        rows: at least one, all with a map a heading.
        headings: of the maps' columns; may hold line breaks.
        path: the PNG.
        colours: a matplotlib colour map.
        alpha: weight of the colours, in [0, 1].
    """
    columns = 1 + len(headings)
    lines = max(heading.count("\n") + 1 for heading in headings)
    # Shapes differ from row to row: each row is as high as its photo at the columns' width, within reason.
    heights = [CELL * min(max(row.photo.shape[1] / row.photo.shape[2], 0.4), 1.3) for row in rows]
    header = (lines + 0.6) * LINE
    footer = 3.0 * LINE
    total = header + sum(heights) + len(rows) * 1.4 * LINE + footer
    figure = Figure(figsize=(CELL * columns, total), dpi=130)
    FigureCanvasAgg(figure)
    top = total - header
    for row, height in zip(rows, heights):
        pictures = [row.photo, *(overlay(row.photo, values, colours, alpha) for values in row.maps)]
        for column, (picture, title) in enumerate(zip(pictures, [row.title, *row.titles])):
            box = ((column + 0.02) / columns, (top - height) / total, 0.96 / columns, height / total)
            axes = figure.add_axes(box)
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
            place = ((column + 0.5) / columns, (top - height - 0.25 * LINE) / total)
            figure.text(*place, _fit(title, 34), ha="center", va="top", fontsize=8, color="#333333")
        top -= height + 1.4 * LINE
    for column, heading in enumerate(["photo", *headings]):
        place = ((column + 0.5) / columns, 1 - 0.35 * LINE / total)
        figure.text(*place, heading, ha="center", va="top", fontsize=9, fontweight="bold")
    _legend(figure, total, colours)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png")


def shorten(name: str, length: int = 30) -> str:
    """The end of a long name: of a path, the part that tells."""
    return name if len(name) <= length else "..." + name[-(length - 3) :]


def _fit(title: str, length: int) -> str:
    return title if len(title) <= length else title[: length - 3] + "..."


def _legend(figure: Figure, total: float, colours: str) -> None:
    axes = figure.add_axes((0.3, 1.6 * LINE / total, 0.4, 0.55 * LINE / total))
    bar = figure.colorbar(ScalarMappable(cmap=colours), cax=axes, orientation="horizontal")
    bar.set_ticks([0, 1], labels=["lowest of the map", "highest of the map"])
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
