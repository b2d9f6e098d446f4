"""Light: lamps and sun with soft shadows, sky, ambient occlusion, fog, exposure and white balance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .geometry import Thing, intersect, rotate

if TYPE_CHECKING:
    from .render import View


@dataclass(frozen=True)
class Lamp:
    """A light source: a sphere of ``radius`` metres at ``position``.

    ``colour`` is the linear RGB irradiance it gives at ``reach`` metres, falling off softly with distance;
    ``reach`` = inf is the sun, which does not fall off.
    """

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    radius: float
    reach: float


@dataclass(frozen=True)
class Lighting:
    """All light of a picture. Colours are linear RGB.

    ``above`` and ``below`` are the ambient light on surfaces that face up and down, ``zenith`` and ``horizon`` the
    sky, ``fog`` the share of light lost per metre, ``balance`` the camera's white balance and exposure per channel.
    """

    lamps: tuple[Lamp, ...]
    above: tuple[float, float, float]
    below: tuple[float, float, float]
    balance: tuple[float, float, float]
    zenith: tuple[float, float, float] = (0.2, 0.4, 0.8)
    horizon: tuple[float, float, float] = (0.7, 0.8, 0.9)
    fog: float = 0.0


# Shadows farther away than this many metres are not worth tracing.
_SHADOW_RANGE = 55.0

# Where on the light each pixel of a 4x4 block aims (ordered so that neighbours differ most): with the blur
# of the same size this turns one shadow ray per pixel into 16 samples of the light's disc.
_DITHER = np.array([0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5]).reshape(4, 4)


@lru_cache(maxsize=4)
def _offsets(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Position on the unit disc for every pixel (golden-angle spiral over the 16 dither values)."""
    k = np.tile(_DITHER, (shape[0] // 4 + 1, shape[1] // 4 + 1))[: shape[0], : shape[1]].ravel()
    radius, angle = np.sqrt((k + 0.5) / 16), k * 2.399963
    return (radius * np.cos(angle)).astype(np.float32), (radius * np.sin(angle)).astype(np.float32)


def _cones(
    centers: np.ndarray, radii: np.ndarray, lamp: Lamp, farthest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cones from the lamp that hold everything spheres can shade.

    Returns distances (T,) of the spheres' centres, unit axes (T, 3) and cosines (T,) of the half angles.
    """
    away = centers - np.array(lamp.position)
    gaps = np.sqrt((away**2).sum(axis=1))
    # Rays start on the lamp's disc; they have come closer to the axis by the time they reach the sphere.
    widened = (radii + lamp.radius * np.maximum(0, 1 - (gaps - radii) / farthest)) / gaps
    cosines = np.where(widened < 1, np.sqrt(np.maximum(0, 1 - widened**2)) - 1e-4, -2)
    return gaps, (away / gaps[:, None]).astype(np.float32), cosines.astype(np.float32)


def _visibility(
    things: tuple[Thing, ...],
    lamp: Lamp,
    points: np.ndarray,
    toward: np.ndarray,
    gap: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """1 where the lamp is seen and 0 in shadow, (n,) float32; one ray per pixel to a dithered point of the lamp.

    ``points`` (3, n); ``toward`` (3, n) unit directions to the lamp's centre, 0 for points that need no answer;
    ``gap`` (n,) distances to it.
    """
    seen = np.ones(points.shape[1], dtype=np.float32)
    center = np.array(lamp.position, dtype=np.float32)
    away = -center / np.linalg.norm(center) if np.isinf(lamp.reach) else np.array([0, 0, -1], np.float32)
    side = np.cross(away, (0.0, 1.0, 0.0)).astype(np.float32)
    side *= np.float32(lamp.radius) / np.linalg.norm(side)
    across = np.cross(away, side).astype(np.float32)
    things = tuple(thing for thing in things if thing.top > 0.2)  # the ground casts no shadow, a rug none that shows
    centers = np.array([t.bounds[0] for t in things]).reshape(-1, 3)
    radii = np.array([t.bounds[1] for t in things])
    farthest = float(gap.max(initial=1.0, where=(toward != 0).any(axis=0)))
    gaps, axes, cosines = _cones(centers, radii + 0.02, lamp, farthest)  # + the offset of the rays' ends
    near = -(axes @ toward) > cosines[:, None]  # only a filter: its rounding cannot change the picture
    first, second = _offsets(shape)
    for k in np.flatnonzero(gaps > radii):  # a lamp does not shade itself
        chosen = np.flatnonzero(near[k])
        chosen = chosen[gap[chosen] > gaps[k] - radii[k] - lamp.radius]
        if not chosen.size:
            continue
        u, v = first[chosen], second[chosen]
        start = np.stack([center[i] + side[i] * u + across[i] * v for i in range(3)])
        step = np.stack([points[i][chosen] for i in range(3)]) - start
        for primitive in things[k].primitives:
            seen[chosen[intersect(primitive, tuple(start), tuple(step)) < 1]] = 0
    return seen


def _blur(seen: np.ndarray, surfaces: np.ndarray) -> np.ndarray:
    """Mean over 4x4 pixels, taken within a surface so that no light leaks over silhouettes."""
    height, width = surfaces.shape
    values = np.pad(seen.reshape(height, width), ((1, 2), (1, 2)))
    ids = np.pad(surfaces, ((1, 2), (1, 2)), constant_values=-2)
    total, weight = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)
    for dy in range(4):
        for dx in range(4):
            same = ids[dy : dy + height, dx : dx + width] == surfaces
            total += same * values[dy : dy + height, dx : dx + width]
            weight += same
    return (total / weight).ravel()


def occlusion(things: tuple[Thing, ...], points: np.ndarray) -> np.ndarray:
    """Ambient light that reaches points (3, n), as (n,): less near the floor, walls and ceiling they do not lie on."""
    shadow = np.zeros(points.shape[1], dtype=np.float32)
    for thing in things:
        for primitive in thing.primitives:
            if primitive.kind != "plane":
                continue
            row = primitive.rotation[2]
            height = rotate(row, points) - np.float32(np.dot(row, primitive.center))
            near = np.exp(-np.maximum(height, 0) * np.float32(1 / 0.35))
            shadow += near * (height > 0.004)
    return 1 - np.float32(0.45) * np.minimum(shadow, 1)


def _column(colour: tuple[float, float, float]) -> np.ndarray:
    return np.array(colour, dtype=np.float32)[:, None]


def _sky(lighting: Lighting, up: np.ndarray) -> np.ndarray:
    """Sky colour (3, n) by the sine of the elevation."""
    blend = np.clip(up * np.float32(1.8), 0, 1) ** np.float32(0.6)
    return _column(lighting.horizon) + (_column(lighting.zenith) - _column(lighting.horizon)) * blend


def shade(things: tuple[Thing, ...], view: View, lighting: Lighting) -> np.ndarray:
    """Linear display RGB (3, n) float32 of all pixels of a view, after exposure and tone curve."""
    light = np.float32(0.5) * (view.normals[2] + 1)
    above, below = _column(lighting.above), _column(lighting.below)
    light = (below + (above - below) * light) * view.open
    shine = np.zeros((3, view.shiny.size), dtype=np.float32)
    start = view.points + view.normals * np.float32(0.012)
    for lamp in lighting.lamps:
        toward = _column(lamp.position) - view.points
        gap = np.sqrt(toward[0] * toward[0] + toward[1] * toward[1] + toward[2] * toward[2])
        toward /= gap
        facing = (toward * view.normals).sum(axis=0)
        lit = ((facing > 0) & (view.travel < _SHADOW_RANGE)).astype(np.float32)
        seen = _visibility(things, lamp, start, toward * lit, gap, view.surface.shape)
        strength = _blur(seen, view.surface)
        if np.isfinite(lamp.reach):
            strength = strength * np.float32(2) / (1 + (gap * np.float32(1 / lamp.reach)) ** 2)
        light += strength * np.maximum(facing, 0) * _column(lamp.colour)
        middle = toward[:, view.shiny] + view.to_eye[:, view.shiny]
        middle /= np.sqrt((middle * middle).sum(axis=0))
        spot = np.maximum((middle * view.normals[:, view.shiny]).sum(axis=0), 0) ** np.float32(40)
        shine += spot * (strength * (facing > 0))[view.shiny] * view.gloss[view.shiny] * _column(lamp.colour)
    result = view.colour * (light + view.glow)
    result[:, view.shiny] += shine
    missed = view.surface.ravel() < 0
    if lighting.fog > 0 or missed.any():
        sky = _sky(lighting, -view.to_eye[2])
        clear = np.exp(view.travel * np.float32(-lighting.fog))
        result = np.where(missed, sky, sky + (result - sky) * clear)
    result *= _column(lighting.balance)
    # A soft shoulder keeps bright walls below white; slope near 1 in the dark.
    return result * (1 + result * np.float32(0.12)) / (1 + result * np.float32(0.62))
