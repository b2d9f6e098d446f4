"""Surface normals: unit vectors in the camera's frame, judged by the mean angle.

Which component is which differs between data sets and decides what a rotated picture does to the vectors:

- ``nyud``: x right, y forward (into the scene), z up. NYUD's published normals and the built-in scenes: surfaces that
  face the camera are (0, -1, 0), floors (0, 0, 1).
- ``camera``: x right, y down, z along the optical axis. What the published ScaleNRotate assumes (it turns x and y).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import normals_l1
from .affinity import SIMILAR_DIRECTION
from .spec import Target, TargetGeometry, TaskSpec

# Component that points right, component that is vertical, and +1 where that one points down.
_IMAGE_PLANE = {"nyud": (0, 2, -1.0), "camera": (0, 1, 1.0)}
_OPTICAL = {"nyud": 1, "camera": 2}

SHORTEST = 0.5
"""Vectors shorter than this are no normals: holes are stored as zero, and read back as less than 0.1."""


def task(axes: str = "nyud") -> TaskSpec:
    """Surface normals estimation.

    Args:
        axes: ``nyud`` or ``camera``, see this module's first lines.

    Raises:
        ValueError: other axes.
    """
    if axes not in _IMAGE_PLANE:
        raise ValueError(f"axes='{axes}': must be one of {', '.join(_IMAGE_PLANE)}")
    right, vertical, down = _IMAGE_PLANE[axes]
    return TaskSpec(
        name="normals",
        title="Surface normals",
        channels=3,
        loss=normals_l1,
        make_metric=_metric,
        metric="mean",
        higher_is_better=False,
        unit="deg",
        geometry=TargetGeometry(
            "bilinear",
            after_rotation=partial(rotate, right=right, vertical=vertical, down=down),
            after_flip=partial(mirror, right=right),
            repair=unit_length,
        ),
        activate=_unit,
        colour=colour,
        problem=partial(_problem, optical=_OPTICAL[axes]),
        protocol={"axes": axes},
        affinity=SIMILAR_DIRECTION,
    )


def rotate(values: Tensor, degrees: float, right: int, vertical: int, down: float) -> Tensor:
    """Turn (3, H, W) vectors about the optical axis, as a picture turned counter-clockwise by ``degrees`` shows them.

    Args:
        values: (3, H, W).
        degrees: counter-clockwise, as the viewer sees it.
        right: component that points right.
        vertical: component that points up or down.
        down: 1 where that one points down, -1 where up.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) * down
    turned = values.clone()
    turned[right] = cosine * values[right] + sine * values[vertical]
    turned[vertical] = cosine * values[vertical] - sine * values[right]
    return turned


def mirror(values: Tensor, right: int) -> Tensor:
    """Negate the component of (3, H, W) vectors that points right."""
    mirrored = values.clone()
    mirrored[right] = -values[right]
    return mirrored


def unit_length(values: Tensor, valid: Tensor) -> Target:
    """Scale (3, H, W) vectors to length 1; what is not valid or shorter than `SHORTEST` becomes 0 and not valid.

    A mean of neighbours that is so short comes from surfaces more than 120 degrees apart: no surface points that way.
    """
    length = values.square().sum(dim=0).sqrt()  # many times faster than vector_norm over the first dimension
    valid = valid & (length >= SHORTEST)
    return Target(torch.where(valid, values / length, 0), valid)


def colour(values: Tensor) -> np.ndarray:
    """(3, H, W) unit vectors as (H, W, 3) uint8: -1 is 0, 1 is 255, as the archives store them."""
    return ((values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _unit(output: Tensor) -> Tensor:
    return F.normalize(output.float(), dim=1, eps=1e-6)


def _problem(values: Tensor, valid: Tensor, optical: int) -> str | None:
    if not valid.any():
        return None
    vectors = values[:, valid]
    length = torch.linalg.vector_norm(vectors, dim=0)
    if float((length - 1).abs().max()) > 1e-3:
        return f"lengths {float(length.min()):.2f} to {float(length.max()):.2f}, expected 1"
    # Visible surfaces face the camera: the component along the optical axis has one sign nearly everywhere.
    towards = float((vectors[optical] < 0).float().mean())
    if 0.25 < towards < 0.75:
        return f"component {optical} has both signs, so it is not the optical axis; other axes than the task's?"
    return None


def _metric() -> Any:
    from ..metrics.normals import NormalsMetric

    return NormalsMetric()
