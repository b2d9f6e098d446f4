"""Depth estimation: metres along the optical axis, judged by the RMSE."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..losses import depth_l1
from .affinity import SIMILAR_DEPTH
from .spec import TargetGeometry, TaskSpec, plane


def task(protocol: str = "survey", farthest: float = 10.0) -> TaskSpec:
    """Monocular depth estimation.

    Args:
        protocol: of the RMSE: ``survey`` (over all pixels of the set) or ``rcm`` (mean over images).
        farthest: metres at the end of the colour scale.

    Raises:
        ValueError: an unknown protocol.
    """
    from ..metrics.depth import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol='{protocol}': must be one of {', '.join(PROTOCOLS)}")
    return TaskSpec(
        name="depth",
        title="Depth",
        channels=1,
        loss=depth_l1,
        make_metric=partial(_metric, protocol),
        metric="rmse",
        higher_is_better=False,
        unit="m",
        geometry=TargetGeometry("bilinear", after_scale=nearer),
        activate=_metres,
        colour=partial(colour, farthest=farthest),
        problem=_problem,
        protocol={"depth": protocol},
        affinity=SIMILAR_DEPTH,
    )


def nearer(values: Tensor, factor: float) -> Tensor:
    """Depth of an enlarged picture: what is seen ``factor`` times as large is ``factor`` times as near."""
    return values / factor


def colour(values: Tensor, farthest: float) -> np.ndarray:
    """Metres, (H, W) or (1, H, W), as (H, W, 3) uint8 of a fixed scale: near yellow, ``farthest`` dark violet."""
    from matplotlib import colormaps

    # The square root gives the near range, where rooms are, most of the colours.
    share = (plane(values).float() / farthest).clamp(0, 1).sqrt()
    return (colormaps["viridis"](1 - share.numpy())[..., :3] * 255).round().astype(np.uint8)


def _metres(output: Tensor) -> Tensor:
    # The loss sees the raw output, so a negative one still learns; as a prediction it counts as 0 (published code).
    return output[:, 0].float().clamp(min=0)


def _problem(values: Tensor, valid: Tensor) -> str | None:
    if not valid.any():
        return "no valid pixel"
    metres = plane(values)[valid]
    low, high = float(metres.min()), float(metres.max())
    if low <= 0 or high > 200:
        return f"depths {low:g} to {high:g}, expected metres above 0 (a file in millimetres?)"
    return None


def _metric(protocol: str) -> Any:
    from ..metrics.depth import DepthMetric

    return DepthMetric(protocol)
