"""Thinning of binary maps to lines one pixel wide (Guo and Hall, CACM 1989; MATLAB's ``bwmorph(..., 'thin', Inf)``)."""

from __future__ import annotations

import numpy as np

# The eight neighbours x1 to x8: from the right one counter-clockwise, as (row, column) steps.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(image: np.ndarray) -> np.ndarray:
    """Peel off border pixels until nothing changes; connected sets stay connected.

    Only pixels beside those that were just removed are looked at again, so the cost grows with the number of
    foreground pixels, not with the image.

    Args:
        image: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    padded = np.pad(np.ascontiguousarray(image, dtype=bool), 1)
    pixels = padded.reshape(-1)
    steps = np.array([row * padded.shape[1] + column for row, column in _NEIGHBOURS])
    # What each sub-iteration has to look at next: all at first, then the neighbourhoods that changed since.
    waiting = np.stack([pixels, pixels])
    idle = 0
    turn = 0
    while idle < 2:
        candidates = np.flatnonzero(waiting[turn] & pixels)
        waiting[turn] = False
        removed = candidates[_REMOVABLE[turn][_codes(pixels, candidates, steps)]]
        pixels[removed] = False
        for step in steps:
            waiting[:, removed + step] = True
        idle = 0 if len(removed) else idle + 1
        turn = 1 - turn
    return padded[1:-1, 1:-1].copy()


def _codes(pixels: np.ndarray, places: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(P,) uint8: bit k is set where neighbour x(k+1) is foreground."""
    codes = np.zeros(len(places), dtype=np.uint8)
    for bit, step in enumerate(steps):
        codes |= pixels[places + step].view(np.uint8) << bit
    return codes


def _removable() -> np.ndarray:
    """(2, 256) bool: neighbourhoods whose centre goes, for the first and the second sub-iteration."""
    codes = np.arange(256)
    x = [None, *((codes >> bit & 1).astype(bool) for bit in range(8))]
    x.append(x[1])
    # G1: exactly one crossing from background to foreground around the pixel.
    crossings = sum((~x[2 * i - 1] & (x[2 * i] | x[2 * i + 1])).astype(int) for i in range(1, 5))
    # G2: neither an end point nor an inner one.
    first = sum((x[2 * k - 1] | x[2 * k]).astype(int) for k in range(1, 5))
    second = sum((x[2 * k] | x[2 * k + 1]).astype(int) for k in range(1, 5))
    fewer = np.minimum(first, second)
    border = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    # G3 and G3': from the south-east, then from the north-west.
    return np.stack([border & ~((x[2] | x[3] | ~x[8]) & x[1]), border & ~((x[6] | x[7] | ~x[4]) & x[5])])


_REMOVABLE = _removable()
