"""Thin edges from soft edge maps: triangle smoothing, edge orientation, non-maximum suppression.

The recipe of structured edge detection (Dollar and Zitnick, "Fast edge detection using structured forests",
PAMI 2015), which the published edge scores apply to a network's output before matching.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

RADIUS = 1
BORDER = 5
MARGIN = 1.01


def triangle_smoothing(image: np.ndarray, radius: int) -> np.ndarray:
    """Convolve with a separable triangle filter of total width ``2 * radius + 1``; the border is mirrored.

    Args:
        image: (H, W).
        radius: in pixels; 0 leaves the image as it is.
    """
    if radius == 0:
        return np.asarray(image, dtype=np.float64)
    ramp = np.arange(1, radius + 2, dtype=np.float64)
    weights = np.concatenate([ramp, ramp[-2::-1]]) / (radius + 1) ** 2
    rows = ndimage.correlate1d(np.asarray(image, dtype=np.float64), weights, axis=0, mode="reflect")
    return ndimage.correlate1d(rows, weights, axis=1, mode="reflect")


def edge_orientation(edges: np.ndarray, smoothing: int = 4) -> np.ndarray:
    """Direction across the edge in every pixel, from second derivatives: (H, W) radians in [0, pi).

    The ratio of the derivatives is the squared tangent of the angle, and the reference takes the arctangent of it as
    it is: right along the axes and diagonals, up to 12 degrees off between. Kept, as published scores depend on it.

    Args:
        edges: (H, W) edge strength, H and W at least 2.
        smoothing: radius of the triangle filter before the derivatives.
    """
    down, right = np.gradient(triangle_smoothing(edges, smoothing))
    right_right = np.gradient(right, axis=1)
    down_down, down_right = np.gradient(down)
    # A mixed derivative of exactly 0 has sign + here; the reference's 0 would turn level edges by 90 degrees.
    slope = down_down * np.where(down_right > 0, -1, 1) / (right_right + 1e-5)
    return np.mod(np.arctan(slope), np.pi)


def suppress_non_maxima(
    edges: np.ndarray, orientation: np.ndarray, radius: int = RADIUS, border: int = BORDER, margin: float = MARGIN
) -> np.ndarray:
    """Set every pixel to 0 whose neighbours across the edge are stronger.

    Args:
        edges: (H, W) edge strength.
        orientation: (H, W) radians, the direction across the edge.
        radius: how many steps of one pixel are compared on both sides.
        border: edges fade out linearly over that many pixels at the image's border.
        margin: a pixel survives unless a neighbour exceeds ``margin`` times its strength.

    Returns:
        (H, W) float64.
    """
    height, width = edges.shape
    strength = np.asarray(edges, dtype=np.float64)
    rows, columns = np.nonzero(strength)
    values = strength[rows, columns]
    right, down = np.cos(orientation[rows, columns]), np.sin(orientation[rows, columns])
    kept = np.ones(len(values), dtype=bool)
    for step in (*range(-radius, 0), *range(1, radius + 1)):
        neighbour = _bilinear(strength, rows + step * down, columns + step * right)
        kept &= margin * values >= neighbour
    thin = np.zeros((height, width))
    thin[rows[kept], columns[kept]] = values[kept]
    return thin * _fade(height, border)[:, None] * _fade(width, border)


def thin_edges(edges: np.ndarray, smoothing: int = 4) -> np.ndarray:
    """Orientation and non-maximum suppression of a soft edge map (H, W), with the published settings."""
    if min(edges.shape) < 2:
        return np.asarray(edges, dtype=np.float64)
    return suppress_non_maxima(edges, edge_orientation(edges, smoothing))


def _bilinear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values at fractional places, which are moved into the image first."""
    rows = np.clip(rows, 0, image.shape[0] - 1.001)
    columns = np.clip(columns, 0, image.shape[1] - 1.001)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = rows - top, columns - left
    above = image[top, left] * (1 - right) + image[top, left + 1] * right
    below = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def _fade(length: int, border: int) -> np.ndarray:
    """(length,) factors that rise from 0 at both ends to 1 after ``border`` pixels."""
    border = min(border, length // 2)
    factors = np.ones(length)
    ramp = np.arange(border) / max(border, 1)
    factors[:border] *= ramp
    factors[length - border :] *= ramp[::-1]
    return factors
