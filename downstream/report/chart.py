"""Line charts as inline SVG: axes, curves with colour *and* dash pattern, letters at their ends, a description."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .curves import Points, thin_out
from .palette import series_colour, series_style

# One chart is as wide as a phone's column, so that its text is never scaled below reading size.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 26, 12, 36
_LETTER = 11  # smallest distance of two letters, in pixels


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        letter: stands at its end and in the legend.
        name: of the run.
        number: decides colour and dash pattern.
        points: (x, y), x ascending.
    """

    letter: str
    name: str
    number: int
    points: Points


def line_chart(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    show: Callable[[float], str],
    floor: float | None = None,
) -> Markup:
    """An SVG of curves that uses the page's custom properties for colours.

    Args:
        key: unique on the page; the ids of title and description are made of it.
        title: what is drawn, with its unit.
        lines: the curves, at least one with points.
        x_label: what x is.
        show: a value of y as people read it.
        floor: the y axis begins here at the latest; None: at the lowest value.

    Raises:
        ValueError: no points at all.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        raise ValueError(f"no points to draw for '{title}'")
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_ticks = ticks(min(0.0, *xs), max(xs), 5)
    y_ticks = ticks(min(ys) if floor is None else min(floor, *ys), max(ys), 4)
    x_range = (x_ticks[0], max(xs) if max(xs) > x_ticks[0] else x_ticks[-1])
    y_range = (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - x_range[0]) / (x_range[1] - x_range[0])
        down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_range[0]) / (y_range[1] - y_range[0])
        return across, down

    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
            '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
        ).format(WIDTH, HEIGHT, key, key, key, title, key, describe(drawn, x_label, show)),
        *_axes(x_ticks, y_ticks, x_range, place, x_label, show),
        *(_curve(line, place) for line in drawn),
        *(_letters(drawn, place) if len(lines) > 1 else ()),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def describe(lines: Sequence[Line], x_label: str, show: Callable[[float], str]) -> str:
    """The curves in words, for those who do not see them."""
    sentences = []
    for line in lines:
        ys = [y for _, y in line.points]
        low, high = (min(line.points, key=lambda p: p[1]), max(line.points, key=lambda p: p[1]))
        sentences.append(
            f"{line.letter}, {line.name}: from {show(ys[0])} to {show(ys[-1])} at {x_label} {line.points[-1][0]:g}; "
            f"lowest {show(low[1])} at {low[0]:g}, highest {show(high[1])} at {high[0]:g}."
        )
    return " ".join(sentences)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below ``low`` to at or above ``high``."""
    if not high > low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    distance = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [float(f"{i * distance:.12g}") for i in range(first, last + 1)]


def _axes(x_ticks, y_ticks, x_range, place, x_label, show) -> list[Markup]:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for y in y_ticks:
        _, down = place(x_range[0], y)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, down, down)
        )
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(left - 6, down + 4, show(y)))
    for x in x_ticks:
        if x > x_range[1] * (1 + 1e-9):
            continue
        across, _ = place(x, y_ticks[0])
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(across, bottom + 15, f"{x:g}")
        )
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom))
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(right, HEIGHT - 5, x_label)
    )
    return parts


def _curve(line: Line, place: Callable[[float, float], tuple[float, float]]) -> Markup:
    points = [place(x, y) for x, y in thin_out(line.points)]
    style = series_style(line.number)
    name = Markup("<title>{} {}</title>").format(line.letter, line.name)
    shapes = []
    if len(points) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(Markup('<polyline class="curve" style="{}" points="{}"/>').format(style, path))
    if len(points) <= 30:  # single measurements, not a course
        colour = series_colour(line.number)
        shapes += [
            Markup('<circle style="fill: {}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(colour, x, y) for x, y in points
        ]
    return Markup("<g>{}{}</g>").format(name, Markup("").join(shapes))


def _letters(lines: Sequence[Line], place: Callable[[float, float], tuple[float, float]]) -> list[Markup]:
    """A letter at the end of each curve, moved apart where ends meet; none where they cannot all be placed."""
    if len(lines) * _LETTER > HEIGHT - TOP - BOTTOM:
        return []
    ends = sorted(((place(*line.points[-1]), line) for line in lines), key=lambda end: end[0][1])
    heights = spread([y for (_, y), _ in ends], _LETTER, TOP, HEIGHT - BOTTOM)
    return [
        Markup('<text class="letter" style="fill: {}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            series_colour(line.number), x + 5, height + 4, escape(line.letter)
        )
        for ((x, _), line), height in zip(ends, heights)
    ]


def spread(places: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending places moved as little as a pass down and a pass up need to keep a distance within low .. high."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + distance if moved else low))
    limit = high
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - distance
    return moved
