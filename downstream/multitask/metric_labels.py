"""What the numbers of the tasks are called, in which unit they are, and which direction is better."""

from __future__ import annotations

from typing import NamedTuple

from polyscene.runtime.results import Metric

from .tasks.spec import TaskSpec


class _Kind(NamedTuple):
    """Label; unit and direction, None for those of the task."""

    label: str
    unit: str | None = None
    better: str | None = None


_KINDS = {
    "miou": _Kind("mIoU"),
    "accuracy": _Kind("accuracy"),
    "mean_class_accuracy": _Kind("mean class accuracy", "%", "higher"),
    "pixel_accuracy": _Kind("pixel accuracy", "%", "higher"),
    "iou": _Kind("max. IoU"),
    "max_f": _Kind("max. F"),
    "odsf": _Kind("odsF"),
    "oisf": _Kind("oisF", "%", "higher"),
    "ap": _Kind("AP", "%", "higher"),
    "precision": _Kind("precision", "%", "higher"),
    "recall": _Kind("recall", "%", "higher"),
    "threshold": _Kind("threshold", "", "higher"),
    "mean": _Kind("mean error"),
    "median": _Kind("median error"),
    "rmse": _Kind("RMSE"),
    "within_11_25": _Kind("< 11.25°", "%", "higher"),
    "within_22_5": _Kind("< 22.5°", "%", "higher"),
    "within_30": _Kind("< 30°", "%", "higher"),
    "abs_rel": _Kind("rel. error", "%", "lower"),
    "delta1": _Kind("δ < 1.25", "%", "higher"),
    "delta2": _Kind("δ < 1.25²", "%", "higher"),
    "delta3": _Kind("δ < 1.25³", "%", "higher"),
}

DELTA = Metric("delta", "Δ vs single-task", "%", "higher")


def metric_of(spec: TaskSpec, key: str) -> Metric:
    """A number of a task as results.json describes it, under the key ``TASK_METRIC``.

    Args:
        spec: the task.
        key: of its metric's ``compute()``; of a user's task it may be any.
    """
    kind = _KINDS.get(key, _Kind(key.replace("_", " "), None if key == spec.metric else ""))
    own = "higher" if spec.higher_is_better else "lower"
    unit = spec.unit if kind.unit is None or key == spec.metric else kind.unit
    better = own if kind.better is None or key == spec.metric else kind.better
    return Metric(f"{spec.name}_{key}", f"{spec.title}: {kind.label}", unit, better)
