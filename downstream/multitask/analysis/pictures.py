"""The three figures, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from polyscene.runtime.files import atomic_writer

from .parameters import TITLES, Growth

_INK = "#333333"
_STYLES = {  # colour (safe for the colour-blind: Okabe and Ito) and dashes, through which coinciding lines show
    "single": ("#000000", "-"),
    "multi_task": ("#56B4E9", "-"),
    "frozen": ("#666666", (0, (6, 6))),
    "task_norms": ("#009E73", (6, (6, 6))),
    "task_convolutions": ("#D55E00", (0, (5, 5))),
    "series_adapters": ("#CC79A7", (0, (4, 4))),
    "parallel_adapters": ("#E69F00", "-"),
    "rcm": ("#0072B2", "-"),
}


def draw_similarity(
    panels: Sequence[tuple[str, Tensor]], tasks: Sequence[str], path: Path | str, label: str = "similarity"
) -> None:
    """A matrix of task similarities for every depth, blue where tasks agree and red where they oppose.

    Args:
        panels: title and (N, N) similarities in [-1, 1], one a depth.
        tasks: N names.
        path: PNG file.
        label: what the numbers are.

    Raises:
        UserError: the file cannot be written.
    """
    side, words = max(0.46 * len(tasks), 1.3), 0.075 * max(map(len, tasks))  # inches
    size = (words + (side + 0.2) * len(panels) + 0.9, words + side + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for i, (axes, (title, matrix)) in enumerate(zip(grid, panels)):
        image = axes.imshow(matrix.numpy(), cmap="RdBu", vmin=-1, vmax=1)
        for row in range(len(tasks)):
            for column in range(len(tasks)):
                value = float(matrix[row, column])
                ink = "white" if abs(value) > 0.6 else _INK
                shown = f"{value:.2f}".replace("-0.00", "0.00")
                axes.text(column, row, shown, ha="center", va="center", fontsize=6.5, color=ink)
        axes.set_title(title, fontsize=9, color=_INK)
        axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=7.5, color=_INK)
        axes.set_yticks(range(len(tasks)), tasks if i == 0 else [], fontsize=7.5, color=_INK)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.9, aspect=14, pad=0.015)
    bar.set_label(label, fontsize=8, color=_INK)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    _save(figure, path)


def draw_growth(growth: Mapping[str, Growth], arch: str, path: Path | str) -> None:
    """Parameters of the encoder against the number of tasks, a line a kind of model.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, each in growth.items():
        colour, dashes = _STYLES[kind]
        millions = np.array(each.encoder) / 1e6
        solid = dashes == "-"
        axes.plot(
            range(1, len(millions) + 1),
            millions,
            color=colour,
            linewidth=2.4 if kind == "rcm" else 1.8,
            linestyle=dashes,
            marker="o" if solid else None,
            markersize=3.5,
            zorder=2 if solid else 3,
        )
    _label_ends(axes, growth)
    count = len(next(iter(growth.values())).encoder)
    axes.set_xticks(range(1, count + 1))
    axes.set_xlim(0.9, count + 0.1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tasks", fontsize=9, color=_INK)
    axes.set_ylabel(f"parameters of the {arch} encoder, millions", fontsize=9, color=_INK)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
    _save(figure, path)


def draw_features(
    images: Sequence[np.ndarray],
    pictures: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    title: str,
    path: Path | str,
) -> None:
    """One task's coloured features: for every image a row a model and a column a layer, as in figure 5.

    Args:
        images: N input images (H, W, 3) uint8, of any sizes.
        pictures: model -> layer -> N pictures (h, w, 3) uint8; every model has the same layers.
        title: the task.
        path: PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    models = list(pictures)
    layers = list(pictures[models[0]])
    cell = 1.9
    heights = [cell * image.shape[0] / image.shape[1] for image in images for _ in models]
    rows = len(heights)
    figure = Figure(figsize=(cell * (len(layers) + 1) + 0.35, sum(heights) + 0.55), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure.suptitle(title, fontsize=11, color=_INK)
    grid = figure.subplots(rows, len(layers) + 1, squeeze=False, height_ratios=heights)
    for row in range(rows):
        number, model = row // len(models), models[row % len(models)]
        height, width = images[number].shape[:2]
        shown = [images[number] if row % len(models) == 0 else None]
        shown += [pictures[model][layer][number] for layer in layers]
        for column, (axes, picture) in enumerate(zip(grid[row], shown)):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if picture is not None:
                # Cells stay visible as squares: a smooth picture would show detail that the layer does not have.
                enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
                axes.imshow(np.asarray(enlarged))
            if row == 0:
                axes.set_title("image" if column == 0 else layers[column - 1], fontsize=9, color=_INK)
        grid[row][1].set_ylabel(model, fontsize=9, color=_INK)
    _save(figure, path)


def _label_ends(axes: Axes, growth: Mapping[str, Growth]) -> None:
    """Names of the lines at their right ends, moved apart where they would overlap."""
    ends = sorted(((each.encoder[-1] / 1e6, kind) for kind, each in growth.items()))
    top = max(value for value, _ in ends)
    gap, last = 0.052 * top, -np.inf
    count = len(next(iter(growth.values())).encoder)
    for value, kind in ends:
        place = max(value, last + gap)
        last = place
        axes.annotate(
            f"{TITLES[kind]}  {value:.1f}",
            (count, value),
            xytext=(count + 0.18 + 0.02 * count, place),
            fontsize=8,
            va="center",
            color=_STYLES[kind][0],
            fontweight="bold" if kind == "rcm" else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "#cccccc",
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _save(figure: Figure, path: Path | str) -> None:
    with atomic_writer(Path(path)) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08)
