"""The spectrum of a network's responses, for people: how few directions hold most of the energy, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from polyscene.runtime.files import atomic_writer

from .moments import Moments
from .response_init import resolve_rank, spectrum

SHARES = (0.90, 0.95, 0.99)

_DOTS = ("#9ecae1", "#4292c6", "#08306b")  # light to dark: little to much energy
_KEPT = "#d94801"
_INK = "#333333"


def directions_needed(curve: Tensor, share: float) -> int:
    """The smallest rank whose directions hold ``share`` of the energy.

    Args:
        curve: (C,) energy kept by the first 1 .. C directions, of :func:`.response_init.spectrum`.
        share: in (0, 1].
    """
    # Rounding may leave the last value a little below 1.
    return min(int(torch.searchsorted(curve.contiguous(), share)) + 1, len(curve))


def spectrum_table(moments: Mapping[str, Moments], rank: float | None = None) -> Table:
    """A row a convolution: its width, the ranks that keep 90, 95 and 99% of the energy, and what ``rank`` keeps."""
    table = Table(title="Response spectrum: directions needed for a share of the energy")
    table.add_column("convolution")
    for heading in ("channels", *(f"{share:.0%}" for share in SHARES)):
        table.add_column(heading, justify="right")
    if rank is not None:
        table.add_column("rank", justify="right")
        table.add_column("energy kept", justify="right")
    for name, curve in spectrum(moments).items():
        cells = [str(len(curve)), *(str(directions_needed(curve, share)) for share in SHARES)]
        if rank is not None:
            kept = resolve_rank(rank, len(curve))
            cells += [str(kept), f"{float(curve[kept - 1]):.2%}"]
        table.add_row(name, *cells)
    return table


def draw_spectrum(moments: Mapping[str, Moments], path: Path | str, rank: float | None = None) -> None:
    """Draw a PNG: the share of directions that every layer needs for 90, 95 and 99% of its energy, and all curves.

    Args:
        moments: name of the convolution -> moments, in the order of the network.
        path: the file.
        rank: the rank that a model keeps, to be marked (see :func:`.response_init.resolve_rank`); None: all.

    Raises:
        UserError: the file cannot be written.
    """
    curves = spectrum(moments)
    figure = Figure(figsize=(11, max(3.6, 1.3 + 0.19 * len(curves))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_rows(rows, curves, rank)
    _draw_curves(lines, list(curves.values()))
    for axes in (rows, lines):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=_INK)
        axes.xaxis.set_major_formatter("{x:.0%}")
    with atomic_writer(Path(path)) as file:
        figure.savefig(file, format="png")


def _draw_rows(axes: Axes, curves: Mapping[str, Tensor], rank: float | None) -> None:
    """A row a layer, the first on top: dots at the ranks needed, and a tick at the rank that is kept."""
    places = range(len(curves))
    for place, curve in zip(places, curves.values()):
        ranks = [directions_needed(curve, share) for share in SHARES]
        width = len(curve)
        axes.plot([ranks[0] / width, ranks[-1] / width], [place] * 2, color="#cccccc", linewidth=1.5, zorder=1)
        for needed, colour in zip(ranks, _DOTS):
            axes.scatter(needed / width, place, s=22, color=colour, zorder=2)
        axes.text(1.02, place, f"{ranks[-1]} of {width}", fontsize=7, va="center", color=_INK)
        if rank is not None:
            kept = resolve_rank(rank, width)
            axes.plot([kept / width] * 2, [place - 0.35, place + 0.35], color=_KEPT, linewidth=1.5, zorder=3)
    for share, colour in zip(SHARES, _DOTS):
        axes.scatter([], [], s=22, color=colour, label=f"{share:.0%} of the energy")
    if rank is not None:
        axes.plot([], [], color=_KEPT, linewidth=1.5, label="rank that is kept")
    axes.set_yticks(places, list(curves))
    axes.set_ylim(len(curves) - 0.5, -0.5)
    axes.set_xlim(0, 1.0)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("directions needed, share of the layer's channels (number: for 99%)", fontsize=8, color=_INK)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=4,
        fontsize=8,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1,
    )


def _draw_curves(axes: Axes, curves: Sequence[Tensor]) -> None:
    """Energy kept by the leading directions, a curve a layer, coloured by depth."""
    colours = colormaps["viridis"]
    for place, curve in enumerate(curves):
        x = torch.arange(len(curve) + 1) / len(curve)
        y = torch.cat([curve.new_zeros(1), curve])
        axes.plot(x, y, color=colours(0.95 * place / max(1, len(curves) - 1)), linewidth=1.1)
    for share in SHARES:
        axes.axhline(share, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("directions kept, share of the layer's channels", fontsize=8, color=_INK)
    axes.set_ylabel("energy of the responses kept", fontsize=8, color=_INK)
    axes.set_box_aspect(1)
    axes.set_anchor("N")
    axes.plot([], [], color=colours(0.0), label="first layer")
    axes.plot([], [], color=colours(0.95), label="last layer")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
