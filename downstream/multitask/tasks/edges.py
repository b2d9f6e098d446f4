"""Edge detection: which pixels are boundaries, judged by the optimal-dataset-scale F measure."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..losses import balanced_bce
from .affinity import SAME_SIDE
from .spec import TargetGeometry, TaskSpec, binary_problem, grey, probability


def task(max_distance: float = 0.0075, positive_weight: float = 0.95) -> TaskSpec:
    """Edge detection.

    Args:
        max_distance: a predicted boundary pixel may lie this far from a true one, in image diagonals: 0.0075 for PASCAL
            and BSDS, 0.011 for NYUD.
        positive_weight: weight of boundary pixels in the loss (thesis section 5.4).
    """
    return TaskSpec(
        name="edges",
        title="Edges",
        channels=1,
        loss=partial(balanced_bce, positive_weight=positive_weight),
        make_metric=partial(_metric, max_distance),
        metric="odsf",
        higher_is_better=True,
        unit="%",
        geometry=TargetGeometry("nearest"),
        activate=probability,
        colour=grey,
        problem=partial(binary_problem, most=0.5),
        protocol={"max_distance": max_distance},
        affinity=SAME_SIDE,
    )


def _metric(max_distance: float) -> Any:
    from ..metrics.edges import EdgeMetric

    return EdgeMetric(max_distance)
