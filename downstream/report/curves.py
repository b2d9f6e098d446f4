"""metrics.jsonl of a run -> one series of numbers per metric, whatever a killed process left at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """The numbers that a run logged.

    Attributes:
        series: metric -> ((step, value), ...), steps ascending, finite values only.
        skipped: lines that could not be read.
    """

    series: Mapping[str, Points] = field(default_factory=dict)
    skipped: int = 0

    @property
    def last_step(self) -> int:
        """The last logged optimiser step; 0 without any."""
        return int(max((points[-1][0] for points in self.series.values()), default=0))

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimiser steps of an epoch, from the last line that names its epoch; None if none does."""
        points = self.series.get("epoch", ())
        return points[-1][0] / points[-1][1] if points and points[-1][1] > 0 and points[-1][0] > 0 else None

    def last(self, name: str) -> float | None:
        """The last value of a metric, or None."""
        points = self.series.get(name, ())
        return points[-1][1] if points else None


def read_curves(path: Path) -> Curves:
    """Read metrics.jsonl; a missing file has no curves, and damaged or half-written lines are skipped and counted.

    Where a resumed run logged a step again, the later line counts.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Curves()
    found: dict[str, dict[int, float]] = {}
    skipped = 0
    for line in lines:
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is None:
            skipped += 1
            continue
        step = entry.pop("step")
        for name, value in entry.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(name, {})[step] = float(value)
    series = {name: tuple(sorted((float(s), v) for s, v in values.items())) for name, values in found.items()}
    return Curves(series, skipped)


def _entry(line: str) -> dict | None:
    """One line as an object with a step, or None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    step = entry.get("step")
    good = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return entry if good else None


def thin_out(points: Sequence[tuple[float, float]], most: int = 300) -> Points:
    """At most ``most`` points with the same outline: the lowest and the highest of each stretch, and both ends."""
    if len(points) <= most:
        return tuple(points)
    inner = points[1:-1]
    stretches = max(1, (most - 2) // 2)
    kept = [points[0]]
    for i in range(stretches):
        stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        if stretch:
            # In the order of x, and one point where lowest and highest are the same.
            kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return (*kept, points[-1])
