"""Procedural surface materials: pattern functions of two texture coordinates in metres, filtered by footprint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
Pattern = Literal[
    "plain",
    "stripes",
    "checker",
    "dots",
    "diamonds",
    "bricks",
    "tiles",
    "planks",
    "wood",
    "noise",
    "facade",
    "books",
    "painting",
    "view",
    "road",
    "drawers",
]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    ``first`` and ``second`` are linear RGB in 0..1, ``scale`` the size of one pattern cell in metres, ``grain``
    the strength of the fine mottling, ``gloss`` the strength of highlights, ``glow`` the light it gives off itself,
    and ``seed`` picks the random details (which windows are lit, the tone of each board).
    """

    pattern: Pattern
    first: Colour
    second: Colour = (0.5, 0.5, 0.5)
    scale: float = 0.3
    grain: float = 0.12
    gloss: float = 0.0
    glow: float = 0.0
    seed: int = 0


def linear(red: int, green: int, blue: int) -> Colour:
    """Linear RGB in 0..1 of an 8-bit sRGB colour (gamma 2.2)."""
    return ((red / 255) ** 2.2, (green / 255) ** 2.2, (blue / 255) ** 2.2)


@lru_cache(maxsize=1)
def noise_tile(side: int = 512) -> np.ndarray:
    """(side, side) float32 cloud noise that repeats seamlessly; spectrum 1/f, values mostly within -1..1."""
    generator = np.random.default_rng(7)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.standard_normal((side, side))) / np.maximum(frequency, 3)
    tile = np.fft.irfft2(spectrum, s=(side, side))
    return np.clip(tile / tile.std() * 0.45, -1, 1).astype(np.float32)


@lru_cache(maxsize=1)
def hash_table() -> np.ndarray:
    """(4096,) float32 fixed uniforms in [0, 1) that :func:`cell_random` draws from."""
    return np.random.default_rng(11).random(4096, dtype=np.float32)


def cell_random(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    """One uniform in [0, 1) for each cell (i, j) of a pattern."""
    return hash_table()[(i * 1031 + j * 733 + seed * 2017 + i * j * 37) & 4095]


def noise(u: np.ndarray, v: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Cloud noise in -1..1 whose tile spans ``size`` metres."""
    tile = noise_tile()
    factor = np.float32(tile.shape[0] / size)
    row = (v * factor).astype(np.int32) + seed * 97
    column = (u * factor).astype(np.int32) + seed * 193
    return tile[row & (tile.shape[0] - 1), column & (tile.shape[1] - 1)]


def _step(distance: np.ndarray, width: np.ndarray) -> np.ndarray:
    """1 inside (positive distance), 0 outside, blended over one pixel footprint: anti-aliased edges."""
    return np.clip(distance / width + np.float32(0.5), 0, 1)


def _cell(x: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Cell number and distance in metres to the nearer border of that cell."""
    scaled = x * np.float32(1 / size)
    number = np.floor(scaled)
    inside = (scaled - number) * np.float32(size)
    return number.astype(np.int32), np.minimum(inside, np.float32(size) - inside)


def albedo(material: Material, u: np.ndarray, v: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Linear RGB of surface points, (n, 3) float32.

    Args:
        material: what the surface is made of.
        u: (n,) horizontal texture coordinate, metres.
        v: (n,) vertical texture coordinate, metres.
        width: (n,) size of a pixel on the surface, metres; edges finer than this are averaged.
    """
    first, second = np.array(material.first, np.float32), np.array(material.second, np.float32)
    painter = {"facade": _facade, "books": _books, "painting": _painting, "view": _view, "road": _road}
    if material.pattern in painter:
        colour = painter[material.pattern](material, u, v, width)
    else:
        blend, tone = _pattern(material, u, v, width)
        colour = first + (second - first) * blend[:, None]
        if tone is not None:
            colour = colour * tone[:, None]
    if material.grain:
        colour = colour * (1 + np.float32(material.grain) * noise(u, v, 1.7, material.seed))[:, None]
    return colour


def _pattern(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Share of the second colour, and an optional brightness factor, of the two-coloured patterns."""
    s = m.scale
    if m.pattern == "stripes":
        return _step(_cell(u, s)[1] - np.float32(s * 0.25), w), None
    if m.pattern == "checker":
        (i, du), (j, dv) = _cell(u, s), _cell(v, s)
        odd = ((i + j) & 1).astype(np.float32)
        fade = np.minimum(np.minimum(du, dv) / w + np.float32(0.5), 1)
        return np.float32(0.5) + (odd - np.float32(0.5)) * fade, None
    if m.pattern == "dots":
        j, _ = _cell(v, s)
        x = np.mod(u + (j & 1) * np.float32(s / 2), np.float32(s)) - np.float32(s / 2)
        y = np.mod(v, np.float32(s)) - np.float32(s / 2)
        return _step(np.float32(s * 0.28) - np.hypot(x, y), w), None
    if m.pattern == "diamonds":
        (_, a), (_, b) = _cell(u + v, s), _cell(u - v, s)
        return _step(np.float32(s * 0.09) - np.minimum(a, b), w), None
    if m.pattern in ("bricks", "tiles", "planks"):
        return _courses(m, u, v, w)
    if m.pattern == "wood":
        rings = noise(u * np.float32(0.12), v, 0.6, m.seed)
        return np.clip(np.float32(0.5) + rings, 0, 1), None
    if m.pattern == "noise":
        return np.clip(np.float32(0.5) + noise(u, v, max(s * 4, 0.4), m.seed), 0, 1), None
    if m.pattern == "drawers":
        line = np.float32(0.012) - _cell(v, s)[1]
        handle = np.minimum(np.float32(0.07) - np.abs(u), np.float32(0.015) - np.abs(np.mod(v, np.float32(s)) - s / 2))
        return np.maximum(_step(line, w), _step(handle.astype(np.float32), w)), None
    return np.zeros_like(u), None


def _courses(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bricks, square tiles and floor boards: cells in rows with joints in the second colour, each its own tone."""
    length, shift, joint, spread = {
        "bricks": (2.4, 0.5, 0.06, 0.35),
        "tiles": (1.0, 0.0, 0.025, 0.14),
        "planks": (9.0, 0.37, 0.02, 0.45),
    }[m.pattern]
    j, dv = _cell(v, m.scale)
    i, du = _cell(u + j * np.float32(shift * length * m.scale), length * m.scale)
    blend = _step(np.float32(joint * m.scale) - np.minimum(du, dv), w)
    tone = 1 + np.float32(spread) * (cell_random(i, j, m.seed) - np.float32(0.5))
    if m.pattern == "planks":
        tone = tone * (1 + np.float32(0.18) * noise(u * np.float32(0.15), v + j * np.float32(0.31), 0.5, m.seed))
    return blend, tone


def _facade(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Wall of a building with a grid of framed windows, some of them lit (second colour = frames)."""
    s = np.float32(m.scale)
    i, j = np.floor(u / s).astype(np.int32), np.floor(v / s).astype(np.int32)
    x, y = np.abs(np.mod(u, s) - s / 2), np.abs(np.mod(v, s) - s * np.float32(0.55))
    pane = np.minimum(s * np.float32(0.26) - x, s * np.float32(0.3) - y)
    frame = np.minimum(s * np.float32(0.31) - x, s * np.float32(0.35) - y)
    cross = np.maximum(np.float32(0.04) - x, np.float32(0.03) - np.abs(y - s * np.float32(0.1)))
    pick = cell_random(i, j, m.seed)
    glass = np.where((pick < 0.16)[:, None], np.float32([0.9, 0.7, 0.32]), np.float32([0.07, 0.11, 0.16]))
    glass = glass * (np.float32(0.7) + pick * np.float32(0.8))[:, None]
    wall, trim = np.array(m.first, np.float32), np.array(m.second, np.float32)
    brick = 1 - np.float32(0.2) * _step(np.float32(0.02) - _cell(v, 0.28)[1], w)
    colour = wall * brick[:, None]
    for mask, over in ((_step(frame, w), trim), (_step(pane, w), glass), (_step(cross, w) * _step(pane, w), trim)):
        colour = colour + (over - colour) * mask[:, None]
    return colour


def _books(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A row of book spines of various colours, widths and titles."""
    s = np.float32(m.scale)
    i, du = _cell(u + np.float32(0.3) * s * np.sin(np.floor(u / s)), m.scale)
    zero = np.zeros_like(i)
    pick = np.stack([cell_random(i, zero + k, m.seed) for k in range(3)], axis=1)
    first, second = np.array(m.first, np.float32), np.array(m.second, np.float32)
    spine = first + (second - first) * pick[:, :1] + np.float32(0.25) * (pick - np.float32(0.5))
    title = _step(np.float32(0.035) - np.abs(v - np.float32(0.04)), w) * (pick[:, 1] > 0.4)
    spine = np.maximum(spine, 0.01) * (1 - np.float32(0.75) * _step(np.float32(0.004) - du, w))[:, None]
    return spine + (np.float32([0.75, 0.68, 0.5]) - spine) * (title * np.float32(0.8))[:, None]


def _painting(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """An abstract landscape: sky, two ranges of hills and a sun or moon."""
    first, second = np.array(m.first, np.float32), np.array(m.second, np.float32)
    phase = hash_table()[(m.seed * 7 + np.arange(6)) & 4095] * 6.28
    far = np.float32(0.06) + np.float32(0.07) * np.sin(u * 7 + phase[0]) + np.float32(0.03) * np.sin(u * 19 + phase[1])
    near = np.float32(-0.1) + np.float32(0.06) * np.sin(u * 9 + phase[2])
    colour = second + (np.float32([0.9, 0.85, 0.7]) - second) * np.clip(v * 2 + np.float32(0.5), 0, 1)[:, None]
    sun = np.hypot(u - np.float32(0.2 * np.sin(phase[3])), v - np.float32(0.17))
    layers = (
        (_step(np.float32(0.06) - sun, w), np.float32([0.95, 0.75, 0.3])),
        (_step(far - v, w), (first + second) / 2),
        (_step(near - v, w), first * np.float32(0.8)),
    )
    for mask, over in layers:
        colour = colour + (over - colour) * mask[:, None]
    return colour


def _view(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What a window shows: bright sky above tree tops, divided by glazing bars (second colour)."""
    sky = np.array(m.first, np.float32)
    trees = np.float32(-0.18) + np.float32(0.2) * noise(u, np.zeros_like(u), 2.5, m.seed)
    up = np.clip(v + np.float32(0.5), 0, 1)[:, None]
    colour = sky * (np.float32(1.15) - np.float32(0.4) * up)
    colour = colour + (np.float32([0.10, 0.2, 0.07]) - colour) * _step(trees - v, w + np.float32(0.03))[:, None]
    bars = np.maximum(np.float32(0.025) - np.abs(u), np.float32(0.025) - np.abs(v - np.float32(0.1)))
    return colour + (np.array(m.second, np.float32) - colour) * _step(bars, w)[:, None]


def _road(m: Material, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Asphalt with a dashed centre line and edge lines; u runs along the road."""
    asphalt = np.array(m.first, np.float32) * (1 + np.float32(0.3) * noise(u, v, 6.0, m.seed))[:, None]
    dash = np.minimum(np.float32(0.09) - np.abs(v), np.float32(1.0) - np.abs(np.mod(u, np.float32(4.0)) - 2))
    edge = np.float32(0.06) - np.abs(np.abs(v) - np.float32(m.scale))
    mark = np.maximum(_step(dash, w), _step(edge, w))
    return asphalt + (np.array(m.second, np.float32) - asphalt) * mark[:, None]
