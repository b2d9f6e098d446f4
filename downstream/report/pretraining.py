"""Pretraining runs in a report: their curves overlaid, and the keys of their configs that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .chart import Line, line_chart
from .curves import Curves
from .runs import PretrainRun


def percent(value: float) -> str:
    """A share in [0, 1] as an axis shows it."""
    return f"{100 * value:g}%" if abs(100 * value - round(100 * value)) < 1e-9 else f"{100 * value:.1f}%"


def number(value: float) -> str:
    """A number in four digits, with a true minus sign."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}".replace("-", "−")


@dataclass(frozen=True)
class Course:
    """A metric of metrics.jsonl that is drawn.

    Attributes:
        key: its name in metrics.jsonl.
        title: its name for people, with the unit.
        help: how to read it.
        show: a value as people read it.
        floor: where the axis begins at the latest.
    """

    key: str
    title: str
    help: str
    show: Callable[[float], str] = number
    floor: float | None = None


COURSES = (
    Course("loss", "Loss", "sum of the parts below, weighted"),
    Course("loss_instance", "Instance loss", "InfoNCE: a view against its anchor and the queue"),
    Course("loss_neighbour", "Neighbour loss", "against the nearest neighbours in the queue", floor=0.0),
    Course("knn_accuracy", "kNN accuracy", "of the frozen features while training", percent, 0.0),
    Course("top1", "Top-1 of the instance task", "share of views closest to their own anchor", percent, 0.0),
    Course(
        "neighbour_label_share", "Neighbours with the same label", "of those the loss retrieves", percent, floor=0.0
    ),
    Course("embedding_std", "Spread of the embeddings", "1: evenly over the sphere; 0: collapsed", floor=0.0),
    Course("feature_rank", "Effective rank of the features", "directions in which a batch varies", floor=0.0),
    Course("learning_rate", "Learning rate", "of the last step", floor=0.0),
    Course("images_per_second", "Images per second", "over all processes", floor=0.0),
    Course("data_wait_percent", "Waiting for data, %", "share of the time", floor=0.0),
)
"""The curves of a pretraining, in the order of the page."""


@dataclass(frozen=True)
class Chart:
    """A chart of the page: `course` drawn as `svg`."""

    course: Course
    svg: Markup


_UNKNOWN = "–"
_ALWAYS_DIFFERENT = {"started", "last entry"}


def draw_charts(runs: Sequence[tuple[str, PretrainRun]]) -> tuple[list[Chart], str]:
    """Charts of all runs overlaid, and what their x axis is: epochs where all runs tell, else steps.

    Args:
        runs: letter and run.
    """
    logged = [run.curves for _, run in runs if run.curves.series]
    epochs = bool(logged) and all(curves.steps_per_epoch for curves in logged)
    axis = "epoch" if epochs else "step"
    charts = []
    for course in COURSES:
        lines = [
            Line(letter, run.name, i, _points(run.curves, course.key, epochs)) for i, (letter, run) in enumerate(runs)
        ]
        values = [y for line in lines for _, y in line.points]
        if values and (course.key != "loss_neighbour" or any(values)):
            svg = line_chart(
                f"chart-{course.key.replace('_', '-')}",
                f"{course.title}, by {axis}",
                lines,
                x_label=axis,
                show=course.show,
                floor=course.floor,
            )
            charts.append(Chart(course, svg))
    return charts, axis


def last_values(runs: Sequence[tuple[str, PretrainRun]], charts: Sequence[Chart]) -> list[tuple[str, str, list[str]]]:
    """(letter, run, last value of each chart) per run."""
    rows = []
    for letter, run in runs:
        values = [(chart.course, run.curves.last(chart.course.key)) for chart in charts]
        rows.append((letter, run.name, ["–" if v is None else course.show(v) for course, v in values]))
    return rows


def config_rows(runs: Sequence[PretrainRun]) -> list[tuple[str, list[str], bool]]:
    """(what, its value in each run, whether the runs differ) of the keys of a pretraining that matter."""
    columns = [_config_summary(run) for run in runs]
    rows = [
        (name, [column.get(name, _UNKNOWN) for column in columns])
        for name in dict.fromkeys(n for c in columns for n in c)
    ]
    differ = {name: len(set(values) - {_UNKNOWN}) > 1 and name not in _ALWAYS_DIFFERENT for name, values in rows}
    return [(name, values, differ[name]) for name, values in rows]


def method(run: PretrainRun) -> str:
    """The method's name, as the backbone's metadata or the config tell."""
    if run.weights and "method" in run.weights:
        return run.weights["method"]
    neighbours = run.config.get("neighbours")
    used = isinstance(neighbours, Mapping) and neighbours.get("k") and neighbours.get("weight")
    return "kNN-MoCo" if used else "MoCo-v2"


def main_number(curves: Curves) -> tuple[str, str]:
    """Label and value of the number that tells most about a pretraining."""
    for key, label, show in (("knn_accuracy", "kNN accuracy while training", None), ("loss", "loss", number)):
        value = curves.last(key)
        if value is not None:
            return label, f"{100 * value:.1f}%" if show is None else show(value)
    return "", "–"


def state_of(run: PretrainRun) -> str:
    """Its state, with the step that an unfinished run has reached."""
    if run.state == "finished" or not run.curves.last_step:
        return run.state
    done, total = run.curves.last_step, _end_step(run)
    if total and done >= total:
        return "unfinished, backbone.safetensors is missing"
    return f"unfinished, step {done:,} of {total:,}" if total else f"unfinished, step {done:,}"


def _end_step(run: PretrainRun) -> int | None:
    epochs, limit, per_epoch = run.config.get("epochs"), run.config.get("max_steps"), run.curves.steps_per_epoch
    if not isinstance(epochs, int) or not per_epoch:
        return None
    total = round(epochs * per_epoch)
    return min(total, limit) if isinstance(limit, int) else total


def _points(curves: Curves, key: str, epochs: bool) -> tuple[tuple[float, float], ...]:
    scale = curves.steps_per_epoch if epochs else 1.0
    return tuple((float(f"{step / scale:.6g}"), value) for step, value in curves.series.get(key, ()))


def _config_summary(run: PretrainRun) -> dict[str, str]:
    """What matters of a config; keys that a damaged or foreign config lacks are left out."""
    get = _Getter(run.config)
    weights = run.weights or {}
    steps, per_epoch = run.curves.last_step, run.curves.steps_per_epoch
    rows = {
        "method": method(run),
        "backbone": get("{}", "model.backbone"),
        "images": get("{} in {}", "data.kind", "data.root"),
        "number of images": weights.get("dataset", "").rpartition(":")[2],
        "epochs": get("{}", "epochs"),
        "steps logged": f"{steps:,}" + (f" ({per_epoch:.4g} an epoch)" if per_epoch else "") if steps else "",
        "batch size": get("{}", "batch_size"),
        "learning rate": get("{}, {} epochs of warm-up", "optim.lr", "optim.warmup_epochs"),
        "weight decay": get("{}", "optim.weight_decay"),
        "large crops": get("{} × {} px, area {}", "views.large.count", "views.large.size", "views.large.scale"),
        "small crops": _small_crops(get),
        "augmentation": get("{}", "views.augmentation"),
        "queue": get("{} keys", "model.queue"),
        "key momentum": get("{}", "model.momentum"),
        "temperature": get("{}", "model.temperature"),
        "neighbours": _neighbours(get),
        "precision": get("{}", "precision"),
        "seed": get("{}", "seed"),
        "started": run.started or "",
        "last entry": run.ended or "",
        "software": ", ".join(f"{n} {v}" for n, v in run.versions.items() if n in ("polyscene", "torch", "commit")),
    }
    return {name: value for name, value in rows.items() if value}


class _Getter:
    """Values of a nested config in words; empty where one of them is absent."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def __call__(self, pattern: str, *keys: str) -> str:
        values = [self.value(key) for key in keys]
        return "" if any(value is None for value in values) else pattern.format(*map(self._show, values))

    def value(self, key: str) -> Any:
        """The value of a dotted key, or None."""
        value: Any = self._config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @staticmethod
    def _show(value: Any) -> str:
        if isinstance(value, list):
            return "–".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        return f"{value:g}" if isinstance(value, float) else str(value)


def _small_crops(get: _Getter) -> str:
    if not get.value("views.small.count"):
        return "none" if get.value("views.small.count") == 0 else ""
    text = get("{} × {} px, area {}", "views.small.count", "views.small.size", "views.small.scale")
    return text + get(", constraint {}", "views.constraint")


def _neighbours(get: _Getter) -> str:
    k, weight = get.value("neighbours.k"), get.value("neighbours.weight")
    if k is None or weight is None:
        return ""
    if not (k and weight):
        return "none"
    return f"{k:g}, weight {weight:g}" + get(", from epoch {}", "neighbours.start_epoch")
