"""Rounds in which contestants take turns, and the ratios of their results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable


def spread(ratios: list[float]) -> dict[str, float | list[float]]:
    """Median and quartiles (of fewer than three, the smallest and the largest)."""
    if len(ratios) < 3:
        first, third = min(ratios), max(ratios)
    else:
        first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(statistics.median(ratios), 3), "quartiles": [round(first, 3), round(third, 3)]}


def shown(found: dict, unit: str = "x", digits: int = 2) -> str:
    """A `spread` as a cell of a table."""
    median, first, third = (f"{value:.{digits}f}" for value in (found["median"], *found["quartiles"]))
    return f"{median}{unit} ({first}-{third})"


def turned(names: Iterable[str], number: int) -> list[str]:
    """The contestants in the order of a round: each begins once."""
    names = list(names)
    shift = number % len(names)
    return names[shift:] + names[:shift]
