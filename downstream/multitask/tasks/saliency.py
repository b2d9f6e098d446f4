"""Saliency: which pixels belong to the salient object."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..losses import balanced_bce
from .affinity import SAME_SIDE
from .spec import TargetGeometry, TaskSpec, binary_problem, grey, probability


def task(protocol: str = "rcm") -> TaskSpec:
    """Saliency estimation.

    Args:
        protocol: of the metric: ``rcm`` or ``survey`` (mean per-image IoU, best of 15 thresholds), or ``atrc``
            (maximum F of the data set, beta^2 = 0.3).

    Raises:
        ValueError: an unknown protocol.
    """
    from ..metrics.saliency import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol='{protocol}': must be one of {', '.join(PROTOCOLS)}")
    return TaskSpec(
        name="saliency",
        title="Saliency",
        channels=1,
        loss=balanced_bce,
        make_metric=partial(_metric, protocol),
        metric="max_f" if protocol == "atrc" else "iou",
        higher_is_better=True,
        unit="%",
        geometry=TargetGeometry("nearest"),
        activate=probability,
        colour=grey,
        problem=partial(binary_problem, most=0.98),
        protocol={"saliency": protocol},
        affinity=SAME_SIDE,
    )


def _metric(protocol: str) -> Any:
    from ..metrics.saliency import SaliencyMetric

    return SaliencyMetric(protocol)
