"""How far a run is, from what lies in its directory: config.yaml, metrics.jsonl and the header of its model."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyscene.runtime.errors import UserError
from polyscene.runtime.run import read_run_config

_TAIL = 65_536  # bytes at the end of a file that are read: hundreds of lines
_LARGEST_HEADER = 10_000_000  # bytes; headers of our models have some 100 000


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Steps done and left.

    Attributes:
        step: optimiser steps done, as far as they were logged; None for a run that has logged none.
        total: steps at the end of the schedule; None where nothing is trained or the first line is not logged yet.
        epoch: passes over the images so far.
        epochs: passes at the end of the schedule, if the config states them.
        images_per_second: of the last logged stretch.
        batch_size: images of a step over all processes.
        metrics: last logged value of every number, those above aside.
    """

    step: int | None = None
    total: int | None = None
    epoch: float | None = None
    epochs: float | None = None
    images_per_second: float | None = None
    batch_size: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def percent(self) -> float | None:
        """Share of the steps that are done, 0 .. 100."""
        if not self.total:
            return None
        return min(100.0, 100 * (self.step or 0) / self.total)

    @property
    def seconds_left(self) -> float | None:
        """Time that the remaining steps take at the last speed; evaluations and pauses come on top."""
        if None in (self.step, self.total, self.batch_size) or not self.images_per_second:
            return None
        return max(0, self.total - self.step) * self.batch_size / self.images_per_second


def read_progress(run: Path) -> Progress:
    """The progress of a run directory; a training of several seeds counts the steps of all.

    Whatever is missing or damaged leaves its fields None; nothing is raised.
    """
    try:
        config = read_run_config(run)
    except (UserError, RecursionError):
        config = {}
    seeds = config.get("seeds")
    if isinstance(seeds, list) and seeds:
        return _of_seeds([_of_one(run / f"seed-{seed}", config) for seed in seeds])
    return _of_one(run, config)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The last lines of a metrics.jsonl, oldest first; damaged ones are left out, a missing file has none."""
    lines = []
    for text in read_tail(path):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and _is_number(line.get("step")):
            lines.append(line)
    return lines


def read_tail(path: Path, size: int = _TAIL) -> list[str]:
    """The whole lines within the last ``size`` bytes of a file; none if there is no such file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            start = max(0, end - size)
            file.seek(start)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if start else lines


def saved_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, whose tensors stay on disk; empty if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _LARGEST_HEADER else {}
        return dict(header.get("__metadata__") or {})
    except (OSError, ValueError, struct.error, AttributeError, TypeError, RecursionError):
        return {}


def end_step(config: Mapping[str, Any], steps_per_epoch: int | None) -> int | None:
    """The step at which the training of a config stops; None if it trains nothing, or the epoch's length is needed."""
    iterations, epochs, most = config.get("iterations"), config.get("epochs"), config.get("max_steps")
    total = None
    if _is_number(iterations):
        total = int(iterations)
    elif _is_number(epochs) and steps_per_epoch:
        total = max(1, round(epochs * steps_per_epoch))
    return min(total, int(most)) if total and _is_number(most) else total or None


def _of_one(run: Path, config: Mapping[str, Any]) -> Progress:
    lines = read_metrics(run / "metrics.jsonl")
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    epoch = last.get("epoch")
    # Steps and epoch of one line: an evaluation's line has no epoch.
    trained = next((line for line in reversed(lines) if _is_number(line.get("epoch")) and line["epoch"] > 0), None)
    steps_per_epoch = round(trained["step"] / trained["epoch"]) if trained else None
    total = end_step(config, steps_per_epoch)
    epochs = total / steps_per_epoch if total and steps_per_epoch else config.get("epochs")
    known = ("step", "epoch", "images_per_second")
    return Progress(
        step=int(last["step"]) if last else None,
        total=total,
        epoch=epoch if _is_number(epoch) else None,
        epochs=epochs if _is_number(epochs) else None,
        images_per_second=_number(last.get("images_per_second")),
        batch_size=config["batch_size"] if isinstance(config.get("batch_size"), int) else None,
        metrics={k: float(v) for k, v in last.items() if k not in known and _is_number(v)},
    )


def _of_seeds(parts: Sequence[Progress]) -> Progress:
    """Several trainings one after the other: steps and epochs add up, the rest is that of the one at work."""
    started = [part for part in parts if part.step is not None]
    current = started[-1] if started else parts[0]
    total = next((part.total for part in started if part.total), current.total)
    epochs = current.epochs
    return Progress(
        step=sum(part.step for part in started) if started else None,
        total=None if total is None else total * len(parts),
        epoch=sum(part.epoch or 0 for part in started) if started else None,
        epochs=None if epochs is None else epochs * len(parts),
        images_per_second=current.images_per_second,
        batch_size=current.batch_size,
        metrics=current.metrics,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None
