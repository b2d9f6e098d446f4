"""One affine warp of an image and its targets: every output pixel is looked up once in the input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..tasks.spec import Target

FILL = (124, 116, 104)
"""Colour of pixels outside the image: the mean of ImageNet, which networks see as zero."""

# A bilinear value is a mean of valid neighbours only if their weights leave no more than this to others.
_CONTAMINATION = 1e-3
# Half-way between two pixels, rounding would choose by floating-point noise; this chooses the left and upper one.
_TIE = 1e-3


class Lookup(NamedTuple):
    """Where output pixels come from.

    Attributes:
        bilinear: (h, w, 2) float32, x and y in the input from -1 (left or upper border) to 1 (right or lower one).
        nearest: the same, moved so that no point lies half-way between two pixels.
        inside: (h, w) bool, the point lies in the input.
    """

    bilinear: Tensor
    nearest: Tensor
    inside: Tensor


def lookup(matrix: np.ndarray, size: tuple[int, int], out: tuple[int, int]) -> Lookup:
    """Apply an affine map to the centres of the output pixels.

    Args:
        matrix: (2, 3), output ``(x, y, 1)`` -> input ``(x, y)``; pixel (row i, column j) has its centre at
            ``(j + 0.5, i + 0.5)``.
        size: (H, W) of the input.
        out: (h, w) of the output.
    """
    m = torch.from_numpy(np.asarray(matrix, dtype=np.float64))
    x = torch.arange(out[1], dtype=torch.float64) + 0.5
    y = (torch.arange(out[0], dtype=torch.float64) + 0.5)[:, None]
    inside = torch.ones(out, dtype=torch.bool)
    bilinear, nearest = torch.empty(*out, 2), torch.empty(*out, 2)
    for axis, extent in enumerate((size[1], size[0])):
        points = m[axis, 0] * x + (m[axis, 1] * y + m[axis, 2])
        inside &= (points >= -1e-6) & (points <= extent + 1e-6)
        bilinear[..., axis] = points * (2 / extent) - 1
        nearest[..., axis] = (points - _TIE) * (2 / extent) - 1
    return Lookup(bilinear, nearest, inside)


def warp_image(image: Tensor, where: Lookup) -> Tensor:
    """(3, H, W) uint8 -> (3, h, w) uint8, bilinear; `FILL` outside."""
    colours = _sample(image.float(), where, "bilinear").round().to(torch.uint8)
    return torch.where(where.inside, colours, torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1))


def warp_target(target: Target, where: Lookup, interpolation: str) -> Target:
    """Values and mask of a target at the output's pixels; zero and not valid outside.

    A bilinear value is valid only if all neighbours that it mixes are.
    """
    values, valid = target
    flat = values.unsqueeze(0) if values.dim() == 2 else values
    flat = torch.where(valid, flat, 0)  # whatever an invalid pixel holds, 0 * NaN would be NaN
    kept = where.inside & (_sample(valid[None].float(), where, interpolation)[0] > 1 - _CONTAMINATION)
    # Class numbers are exact in float32 up to 2^24.
    moved = torch.where(kept, _sample(flat.float(), where, interpolation), 0).to(values.dtype)
    return Target(moved[0] if values.dim() == 2 else moved, kept)


def _sample(planes: Tensor, where: Lookup, interpolation: str) -> Tensor:
    grid = where.nearest if interpolation == "nearest" else where.bilinear
    return F.grid_sample(planes[None], grid[None], mode=interpolation, padding_mode="border", align_corners=False)[0]
