"""Sampling of streets: a road along x with sidewalks, buildings, trees, vehicles and people."""

from __future__ import annotations

import numpy as np

from . import palettes
from .geometry import Thing, box, cylinder, ellipsoid, limb, place, plane
from .materials import linear
from .people import person
from .render import World


def sample_street(rng: np.random.Generator) -> tuple[World, float]:
    """A street whose road runs along x through the origin, and the road's half width in metres."""
    half = float(rng.uniform(3.2, 4.2))
    things = _ground(rng, half)
    for side in (-1, 1):
        _buildings(rng, things, side, half)
        _verge(rng, things, side, half)
    for side in (-1, 1):
        x = float(rng.uniform(-9, -2))
        while x < 24:
            kind = rng.random()
            vehicle = bus(rng) if kind < 0.12 else car(rng)
            if kind < 0.75:
                things.append(place(vehicle, (x, side * (half - 1.15), 0.0), 0.0 if side > 0 else np.pi))
            x += float(rng.uniform(6, 12)) + (4 if kind < 0.12 else 0)
    for _ in range(int(rng.integers(1, 5))):
        items, _ = person(rng)
        spot = (float(rng.uniform(-5, 12)), float(rng.choice([-1, 1])) * (half + float(rng.uniform(0.7, 1.6))), 0.13)
        things.extend(place(item, spot, float(rng.uniform(0, 2 * np.pi))) for item in items)
    return World("street", tuple(things)), half


def _ground(rng: np.random.Generator, half: float) -> list[Thing]:
    green = palettes.pick(rng, palettes.LEAVES)
    lawn = palettes.make(rng, "noise", tuple(0.6 * x for x in green), green, scale=0.8, grain=0.35)
    grey = float(rng.uniform(0.06, 0.12))
    asphalt = palettes.make(rng, "road", (grey, grey, grey * 1.05), (0.65, 0.65, 0.6), scale=half - 0.25, grain=0.15)
    stone = palettes.pick(rng, palettes.STONES)
    paving = palettes.make(rng, "tiles", stone, tuple(0.55 * x for x in stone), scale=0.7)
    kerb = palettes.make(rng, "plain", linear(170, 168, 160))
    sides = [box(0, s * (half + 1.25), 0, (160, 2.5, 0.13), paving) for s in (-1, 1)]
    kerbs = [box(0, s * (half + 0.06), 0, (160, 0.14, 0.135), kerb) for s in (-1, 1)]
    return [
        Thing("grass", (plane((0, 0, 0), (0, 0, 1), lawn),)),
        Thing("road", (box(0, 0, -0.19, (160, 2 * half, 0.2), asphalt),)),
        Thing("sidewalk", (*sides, *kerbs)),
    ]


def _buildings(rng: np.random.Generator, things: list[Thing], side: int, half: float) -> None:
    x = float(rng.uniform(-34, -26))
    while x < 52:
        width, height, depth = float(rng.uniform(6, 12)), float(rng.uniform(4.5, 15)), float(rng.uniform(5, 9))
        if rng.random() < 0.85:
            setback = half + 2.5 + float(rng.choice([0.0, 0.6, 2.5]))
            things.append(_building(rng, x + width / 2, side, setback, (width, depth, height)))
        x += width + float(rng.choice([0.0, 0.0, 1.5, 5.0]))


def _building(rng: np.random.Generator, x: float, side: int, setback: float, size: tuple[float, float, float]) -> Thing:
    width, depth, height = size
    tone = palettes.pick(rng, palettes.STONES if rng.random() < 0.6 else palettes.PAINTS)
    trim = palettes.pick(rng, palettes.PAINTS)
    facade = palettes.make(rng, "facade", tone, trim, scale=float(rng.uniform(1.6, 2.6)), grain=0.1, gloss=0.05)
    roof = palettes.make(rng, "bricks", tuple(0.4 * c for c in palettes.pick(rng, palettes.STONES)), scale=0.3)
    dark, y = palettes.make(rng, "plain", palettes.pick(rng, palettes.ACCENTS)), side * (setback + depth / 2)
    parts = [
        box(x, y, 0, (width, depth, height), facade),
        box(x, y, height, (width + 0.4, depth + 0.4, 0.3), roof),
        box(x, side * (setback - 0.03), 0.1, (1.1, 0.12, 2.2), dark),
        box(x, side * (setback - 0.3), 2.4, (1.7, 0.6, 0.1), roof),
    ]
    if rng.random() < 0.5:  # a stepped roof or a chimney
        parts.append(box(x, y, height + 0.3, (width * 0.6, depth * 0.6, float(rng.uniform(0.8, 2.0))), roof))
    return Thing("building", tuple(parts))


def _verge(rng: np.random.Generator, things: list[Thing], side: int, half: float) -> None:
    """Trees, lamps, benches and signs between kerb and buildings."""
    x, kind = float(rng.uniform(-10, -6)), int(rng.integers(3))
    leaf = palettes.foliage(rng)
    while x < 34:
        y = side * (half + 0.55)
        choice = rng.random()
        if choice < 0.5:
            things.append(place(tree(rng, leaf, kind), (x, y, 0.1), float(rng.uniform(0, 6.28))))
        elif choice < 0.7:
            things.append(place(street_lamp(rng), (x, y, 0.1), np.pi if side < 0 else 0.0))
        elif choice < 0.82:
            things.append(place(bench(rng), (x, side * (half + 1.9), 0.13), 0.0 if side > 0 else np.pi))
        else:
            things.append(place(sign(rng), (x, y, 0.1), float(rng.uniform(-0.5, 0.5)) - np.pi / 2))
        x += float(rng.uniform(3.5, 8))


def tree(rng: np.random.Generator, leaf, kind: int) -> Thing:
    """A broad-leaved tree (kind 0, 1) or a conifer (kind 2), standing on the origin."""
    bark, tall = (
        palettes.make(rng, "noise", linear(88, 66, 48), linear(50, 38, 30), scale=0.2),
        float(rng.uniform(3.2, 5.5)),
    )
    trunk = cylinder(0, 0, 0, 0.14, tall * 0.6, bark, taper=0.7)
    if kind == 2:
        cones = [cylinder(0, 0, tall * (0.2 + 0.24 * k), 1.2 - 0.3 * k, tall * 0.4, leaf, taper=0.05) for k in range(3)]
        return Thing("tree", (trunk, *cones))
    crown = [ellipsoid(0, 0, tall * 0.78, (1.15, 1.15, 1.0), leaf)]
    for k in range(5):
        angle = k * 1.2566 + float(rng.uniform(0, 0.5))
        radius, z = float(rng.uniform(0.55, 0.9)), tall * float(rng.uniform(0.6, 0.92))
        crown.append(
            ellipsoid(0.8 * float(np.cos(angle)), 0.8 * float(np.sin(angle)), z, (radius, radius, radius * 0.85), leaf)
        )
    return Thing("tree", (trunk, *crown))


def street_lamp(rng: np.random.Generator) -> Thing:
    """A lamp post whose arm reaches over the road (towards -y)."""
    post, tall = palettes.metal(rng), float(rng.uniform(3.6, 4.8))
    globe = palettes.make(rng, "plain", linear(255, 244, 214), glow=0.8, grain=0.0)
    arm = limb(np.array([0, 0, tall - 0.05]), np.array([0, -0.9, tall + 0.1]), 0.04, post)
    head = ellipsoid(0, -1.0, tall + 0.05, (0.16, 0.26, 0.1), globe)
    return Thing("street lamp", (cylinder(0, 0, 0, 0.09, tall, post, taper=0.55), arm, head))


def bench(rng: np.random.Generator) -> Thing:
    """A wooden park bench that faces -y."""
    slat, iron = palettes.wood(rng), palettes.metal(rng)
    parts = [box(side * 0.7, 0, 0, (0.06, 0.42, 0.42), iron) for side in (-1, 1)]
    parts += [box(0, -0.15 + 0.15 * k, 0.42, (1.7, 0.12, 0.04), slat) for k in range(3)]
    parts += [box(0, 0.24, 0.55 + 0.17 * k, (1.7, 0.04, 0.12), slat) for k in range(2)]
    return Thing("bench", tuple(parts))


def sign(rng: np.random.Generator) -> Thing:
    """A round or square traffic sign, facing -y."""
    plate, post = palettes.paint(rng, gloss=0.2), palettes.metal(rng)
    pole = cylinder(0, 0, 0, 0.035, 2.5, post)
    if rng.random() < 0.5:
        edge = palettes.make(rng, "plain", linear(236, 236, 232))
        disc = limb(np.array([0, -0.07, 2.35]), np.array([0, -0.04, 2.35]), 0.32, plate)
        return Thing("sign", (pole, disc, limb(np.array([0, -0.08, 2.35]), np.array([0, -0.07, 2.35]), 0.2, edge)))
    return Thing("sign", (pole, box(0, -0.05, 2.0, (0.6, 0.03, 0.6), plate)))


def _wheels(length: float, width: float, radius: float, spots: tuple[float, ...], rng: np.random.Generator) -> list:
    tyre, hub = palettes.make(rng, "plain", (0.02, 0.02, 0.022)), palettes.metal(rng)
    parts = []
    for x in spots:
        for side in (-1, 1):
            inner, outer = (
                np.array([x * length, side * (width / 2 - 0.2), radius]),
                np.array([x * length, side * (width / 2 + 0.02), radius]),
            )
            parts += [
                limb(inner, outer, radius, tyre),
                limb(outer, outer + np.array([0, side * 0.015, 0]), radius * 0.6, hub),
            ]
    return parts


def car(rng: np.random.Generator) -> Thing:
    """A car along x, its front towards +x."""
    skin = palettes.paint(rng, gloss=0.7)
    length, width = float(rng.uniform(3.7, 4.5)), 1.72
    glass = palettes.make(rng, "plain", (0.03, 0.045, 0.06), grain=0.02, gloss=0.9)
    dark = palettes.make(rng, "plain", (0.03, 0.03, 0.03))
    light, red = (
        palettes.make(rng, "plain", (0.9, 0.88, 0.75), glow=0.3),
        palettes.make(rng, "plain", (0.6, 0.03, 0.02), glow=0.2),
    )
    cabin, back = length * float(rng.uniform(0.45, 0.58)), -length * float(rng.uniform(0.06, 0.16))
    parts = [
        box(0, 0, 0.24, (length, width, 0.5), skin),
        box(back, 0, 0.74, (cabin, width - 0.2, 0.36), glass),
        box(back, 0, 1.1, (cabin - 0.16, width - 0.22, 0.1), skin),
        *(box(back + k * cabin / 2 * 0.96, 0, 0.7, (0.07, width - 0.17, 0.42), skin) for k in (-1, 0, 1)),
        *(box(side * length / 2, 0, 0.26, (0.12, width - 0.1, 0.16), dark) for side in (-1, 1)),
        *(box(length / 2, side * 0.62, 0.52, (0.04, 0.32, 0.13), light) for side in (-1, 1)),
        *(box(-length / 2, side * 0.66, 0.52, (0.04, 0.26, 0.14), red) for side in (-1, 1)),
    ]
    return Thing("car", (*parts, *_wheels(length, width, 0.33, (-0.31, 0.31), rng)))


def bus(rng: np.random.Generator) -> Thing:
    """A bus along x, its front towards +x."""
    skin, length, width = palettes.paint(rng, gloss=0.5), 8.5, 2.3
    glass = palettes.make(rng, "plain", (0.03, 0.045, 0.06), grain=0.02, gloss=0.9)
    stripe = palettes.make(rng, "plain", palettes.pick(rng, palettes.PAINTS))
    parts = [
        box(0, 0, 0.35, (length, width, 2.3), skin),
        box(0, 0, 0.75, (length + 0.01, width + 0.02, 0.18), stripe),
        box(length / 2 - 0.02, 0, 1.25, (0.06, width - 0.3, 1.0), glass),
    ]
    parts += [box((k - 2.5) * 1.3, 0, 1.3, (1.1, width + 0.03, 0.85), glass) for k in range(6)]
    return Thing("bus", (*parts, *_wheels(length, width, 0.45, (-0.3, 0.32), rng)))
