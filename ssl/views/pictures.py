"""What the network sees: crop boxes drawn on the images, beside the rendered views."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from .render import denormalise, render_views
from .spec import ANCHOR, AUTOAUGMENT, QUERY, ViewParameters, ViewSpec

MAX_IMAGES = 8
COLOURS = {"query": "#e69f00", "anchor": "#0072b2", "large query": "#cc79a7", "small query": "#009e73"}  # Okabe-Ito
CELL = 1.25  # inches per view; the original is twice as wide
LEGEND_CELL = 3.3  # inches per entry of the legend


def views_picture(images: list[Tensor], params: ViewParameters, spec: ViewSpec, path: str | Path) -> None:
    """Write a PNG of what the network sees: one row per image, the crops drawn on it and all its rendered views.

    Args:
        images: (3, H_i, W_i) uint8 tensors on any device; the first eight are drawn.
        params: of the same images.
        spec: the one the parameters were drawn with.
        path: the PNG; its folder must exist.
    """
    count = min(MAX_IMAGES, len(images))
    images, params = [image.cpu() for image in images[:count]], params[:count]
    groups = render_views(images, params, spec, "cpu")
    rows, columns = max(count, 1), spec.num_views
    legend_columns = max(1, int(CELL * (2 + columns) / LEGEND_CELL))
    roles = list(dict.fromkeys(role(view, spec) for view in range(columns)))
    header = 0.35 + 0.22 * -(-len(roles) // legend_columns)
    figure = Figure(figsize=(CELL * (2 + columns), CELL * 1.25 * rows + header), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        columns + 1,
        width_ratios=[2.0] + [1.0] * columns,
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - header / figure.get_figheight(),
        wspace=0.06,
        hspace=0.24,
    )
    for i in range(count):
        _draw_original(figure.add_subplot(grid[i, 0]), images[i], params.boxes[i].numpy(), spec)
        views = [view for group in groups for view in denormalise(group[i]).permute(0, 2, 3, 1).numpy()]
        for v, view in enumerate(views):
            _draw_view(figure.add_subplot(grid[i, v + 1]), view, v, bool(params.branch[i, v] == AUTOAUGMENT), spec)
    _legend(figure, spec, roles, legend_columns)
    figure.savefig(path)


def role(view: int, spec: ViewSpec) -> str:
    """What a view is for: a key of `COLOURS`."""
    if view == ANCHOR:
        return "anchor"
    if view == QUERY:
        return "query"
    return "large query" if view < spec.large.count else "small query"


def _draw_original(axes, image: Tensor, boxes: np.ndarray, spec: ViewSpec) -> None:
    height, width = image.shape[1:]
    axes.imshow(image.permute(1, 2, 0).to(torch.uint8).numpy(), extent=(0, width, height, 0), aspect="equal")
    # From the last to the first: the anchor and the query end up on top.
    for view in reversed(range(len(boxes))):
        top, left, box_height, box_width = boxes[view]
        style = {"linewidth": 2.2 if view in (QUERY, ANCHOR) else 1.4, "fill": False, "clip_on": False}
        axes.add_patch(Rectangle((left, top), box_width, box_height, edgecolor=COLOURS[role(view, spec)], **style))
    axes.set_axis_off()


def _draw_view(axes, pixels: np.ndarray, view: int, automatic: bool, spec: ViewSpec) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("AutoAugment" if automatic else "standard", fontsize=7, pad=2, color="#444444")
    for spine in axes.spines.values():
        spine.set_color(COLOURS[role(view, spec)])
        spine.set_linewidth(2.2)


def _legend(figure: Figure, spec: ViewSpec, roles: list[str], columns: int) -> None:
    names = {
        "query": f"query ({spec.large.size} px)",
        "anchor": f"anchor ({spec.large.size} px, momentum encoder)",
        "large query": f"further large queries ({spec.large.size} px)",
        "small query": f"small queries ({spec.small.size if spec.small else 0} px, {_constraint(spec)})",
    }
    handles = [Patch(facecolor="none", edgecolor=COLOURS[key], linewidth=2.2, label=names[key]) for key in roles]
    columns = min(columns, len(handles))
    figure.legend(handles=handles, loc="upper center", ncols=columns, frameon=False, fontsize=9, borderaxespad=0.2)


def _constraint(spec: ViewSpec) -> str:
    if spec.constraint == "overlap":
        return f"at least {spec.min_overlap:.0%} in the anchor"
    return "inside the anchor" if spec.constraint == "inside" else "anywhere"
