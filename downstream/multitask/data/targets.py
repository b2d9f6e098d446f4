"""Arrays as files store them -> targets ``(values, valid)``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from ..tasks.normals import unit_length
from ..tasks.spec import Target


def classes_target(labels: np.ndarray, valid: np.ndarray, count: int, path: Path) -> Target:
    """Class numbers (H, W) with their mask.

    Raises:
        UserError: a valid pixel holds no number from 0 to ``count - 1``.
    """
    labels = np.where(valid, labels, 0).astype(np.int64)
    if labels.min() < 0 or labels.max() >= count:
        wrong = sorted({int(v) for v in np.unique(labels) if not 0 <= v < count})
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise UserError(f"'{path}' holds the class {shown}, expected 0 to {count - 1}; is it another label set?")
    return Target(torch.from_numpy(labels), torch.from_numpy(np.ascontiguousarray(valid)))


def share_target(values: np.ndarray, path: Path) -> Target:
    """A map (H, W) of numbers in [0, 1], valid everywhere.

    Raises:
        UserError: other numbers.
    """
    values = values.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise UserError(f"'{path}' holds values from {values.min():g} to {values.max():g}, expected 0 to 1")
    return Target(torch.from_numpy(values)[None], torch.ones(values.shape, dtype=torch.bool))


def depth_target(metres: np.ndarray) -> Target:
    """Depth (H, W) in metres; zero, negative and not finite = no measurement."""
    metres = metres.astype(np.float32)
    valid = np.isfinite(metres) & (metres > 0)
    return Target(torch.from_numpy(np.where(valid, metres, np.float32(0)))[None], torch.from_numpy(valid))


def normals_from_bytes(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> vectors ``2 x / 255 - 1``, (3, H, W) float32."""
    return image.float() * (2 / 255) - 1


def normals_target(vectors: Tensor, valid: Tensor | None = None) -> Target:
    """Vectors (3, H, W), scaled to unit length; what is not finite or much shorter than 1 is a hole."""
    finite = torch.isfinite(vectors).all(dim=0)
    valid = finite if valid is None else finite & valid
    return unit_length(torch.where(finite, vectors, 0).contiguous(), valid)
