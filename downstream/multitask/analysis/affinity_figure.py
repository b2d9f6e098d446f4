"""Figure 5.3 of the thesis, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyscene.runtime.files import atomic_writer

from .affinity import AffinityCounts, correspondence, independent, matched_dissimilar, matched_similar

_INK = "#333333"
# Safe for the colour-blind (Okabe and Ito); with more pairs than colours, the same again with other marks.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^")


def draw_affinities(found: AffinityCounts, titles: Mapping[str, str], path: Path | str) -> None:
    """Correspondence of every pair of tasks against dilation, and of what it is the mean.

    Dotted lines show what independent tasks would have: the rest is what the tasks share.

    Args:
        found: the counts.
        titles: task -> what people call it.
        path: PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(10.4, 4.1), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharex=True, sharey=True, width_ratios=(1.5, 1, 1))
    measures = (
        ("correspondence (mean of both)", correspondence),
        ("similar pairs matched", matched_similar),
        ("dissimilar pairs matched", matched_dissimilar),
    )
    chance = independent(found.table)
    for axes, (title, measure) in zip(panels, measures):
        lines = 100 * measure(found.table)
        expected = 100 * measure(chance)
        for number, (first, second) in enumerate(found.pairs):
            colour = _COLOURS[number % len(_COLOURS)]
            mark = _MARKS[number // len(_COLOURS) % len(_MARKS)]
            label = f"{titles[first]} – {titles[second]}"
            axes.plot(found.dilations, expected[number], color=colour, linewidth=1, linestyle=":", zorder=2)
            axes.plot(
                found.dilations, lines[number], color=colour, linewidth=1.8, marker=mark, markersize=4, label=label
            )
        _dress(axes, title, found.dilations)
    panels[0].set_ylabel("matched, % of pairs", fontsize=9, color=_INK)
    panels[0].plot([], [], color="#777777", linewidth=1, linestyle=":", label="if tasks were independent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    with atomic_writer(Path(path)) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08)


def _dress(axes: Axes, title: str, dilations: tuple[int, ...]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(dilations, [str(dilation) for dilation in dilations])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize=9, color=_INK)
    axes.set_xlabel("dilation, pixels", fontsize=9, color=_INK)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
