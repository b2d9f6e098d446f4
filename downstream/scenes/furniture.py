"""Recognisable indoor things composed of primitives.

Local frame of every builder: it stands on z = 0, its back at +y, its front towards -y, centred on x = 0.
Each returns the list of things it consists of (a bed brings its pillows) and its footprint (width, depth).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import palettes
from .geometry import Primitive, Thing, box, cylinder, ellipsoid, limb
from .materials import Material, linear

Item = tuple[list[Thing], tuple[float, float]]
Builder = Callable[[np.random.Generator], Item]


def _legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Primitive]:
    x, y = width / 2 - thickness, depth / 2 - thickness
    return [box(sx * x, sy * y, 0, (thickness, thickness, height), material) for sx in (-1, 1) for sy in (-1, 1)]


def table(rng: np.random.Generator, name: str = "table") -> Item:
    """A rectangular or round table, often with something on it."""
    wood, height = palettes.wood(rng), float(rng.uniform(0.68, 0.78))
    width, depth = float(rng.uniform(1.1, 1.7)), float(rng.uniform(0.75, 0.95))
    if name == "table" and rng.random() < 0.3:
        radius = depth / 2 + 0.1
        parts = [cylinder(0, 0, height - 0.05, radius, 0.05, wood), cylinder(0, 0, 0, 0.06, height, wood)]
        parts.append(cylinder(0, 0, 0, 0.32, 0.05, wood, taper=0.6))
        width = depth = 2 * radius
    else:
        parts = [box(0, 0, height - 0.05, (width, depth, 0.05), wood), *_legs(width, depth, height - 0.05, 0.07, wood)]
    things = [Thing(name, tuple(parts))]
    if name == "desk":
        things.append(_monitor(rng, 0.0, depth * 0.2, height))
    for x in (-0.3, 0.3):
        if rng.random() < 0.6:
            things.append(trinket(rng, x * width, float(rng.uniform(-0.2, 0.2)) * depth, height))
    return things, (width, depth)


def desk(rng: np.random.Generator) -> Item:
    """A desk with a monitor."""
    return table(rng, "desk")


def _monitor(rng: np.random.Generator, x: float, y: float, z: float, width: float = 0.55) -> Thing:
    dark = palettes.make(rng, "plain", linear(26, 26, 30), grain=0.03, gloss=0.5)
    lively = rng.random() < 0.6
    first, second = palettes.pick(rng, palettes.ACCENTS), palettes.pick(rng, palettes.PAINTS)
    screen = palettes.make(rng, "painting" if lively else "plain", first if lively else linear(18, 20, 26), second)
    height = width * 0.58
    parts = (
        box(x, y, z, (width * 0.35, 0.16, 0.025), dark),
        box(x, y + 0.02, z, (0.05, 0.03, 0.12), dark),
        box(x, y, z + 0.09, (width, 0.05, height), dark),
        box(x, y - 0.028, z + 0.11, (width - 0.05, 0.012, height - 0.05), screen),
    )
    return Thing("television", parts)


def trinket(rng: np.random.Generator, x: float, y: float, z: float) -> Thing:
    """A small thing that stands on furniture: bottle, books, box, table lamp, plant or ball."""
    kind = rng.integers(6)
    if kind == 0:
        glass = palettes.make(rng, "plain", palettes.pick(rng, palettes.ACCENTS), gloss=0.8, grain=0.02)
        parts = (cylinder(x, y, z, 0.045, 0.2, glass), cylinder(x, y, z + 0.2, 0.045, 0.06, glass, taper=0.4))
        return Thing("bottle", (*parts, cylinder(x, y, z + 0.26, 0.018, 0.07, glass)))
    if kind == 1:
        covers = [palettes.paint(rng) for _ in range(3)]
        sizes = [(0.26 - 0.03 * k, 0.19 - 0.015 * k, 0.05) for k in range(3)]
        return Thing("books", tuple(box(x, y, z + 0.05 * k, sizes[k], covers[k]) for k in range(3)))
    if kind == 2:
        return Thing("box", (box(x, y, z, (0.24, 0.18, 0.16), cardboard(rng)),))
    if kind == 3:
        return _lamp(rng, x, y, z, 0.45)
    if kind == 4:
        return _plant(rng, x, y, z, 0.42)
    return Thing("ball", (ellipsoid(x, y, z + 0.1, (0.1, 0.1, 0.1), palettes.paint(rng, gloss=0.6)),))


def cardboard(rng: np.random.Generator) -> Material:
    """Brown card with a strip of tape."""
    return palettes.make(rng, "drawers", linear(172, 128, 82), linear(206, 186, 140), scale=0.6, grain=0.1)


def _lamp(rng: np.random.Generator, x: float, y: float, z: float, height: float) -> Thing:
    shade = palettes.make(rng, "plain", linear(250, 226, 176), grain=0.03, glow=float(rng.uniform(0.7, 1.5)))
    foot, radius = palettes.metal(rng), height * 0.16 + 0.07
    parts = (
        cylinder(x, y, z, radius * 0.7, 0.03, foot),
        cylinder(x, y, z, 0.02 + 0.004 * height, height * 0.75, foot),
        cylinder(x, y, z + height * 0.68, radius, radius * 1.25, shade, taper=float(rng.uniform(0.45, 0.75))),
    )
    return Thing("lamp", parts)


def floor_lamp(rng: np.random.Generator) -> Item:
    """A standing lamp with a glowing shade."""
    return [_lamp(rng, 0, 0, 0, float(rng.uniform(1.4, 1.7)))], (0.5, 0.5)


def _plant(rng: np.random.Generator, x: float, y: float, z: float, height: float) -> Thing:
    pot, leaf = palettes.make(rng, "plain", palettes.pick(rng, palettes.STONES), gloss=0.2), palettes.foliage(rng)
    radius = height * 0.17
    parts = [cylinder(x, y, z, radius * 0.75, height * 0.3, pot, taper=1.35)]
    for k in range(6):
        angle, lean = k * 1.05 + float(rng.uniform(0, 0.6)), float(rng.uniform(0.5, 1.3))
        reach = radius * 1.5 * lean
        spot = (x + reach * np.cos(angle), y + reach * np.sin(angle), z + height * float(rng.uniform(0.5, 0.9)))
        parts.append(limb(np.array([x, y, z + height * 0.25]), np.array(spot), radius * 0.12, leaf))
        parts.append(ellipsoid(*map(float, spot), (radius * 0.95, radius * 0.95, radius * 0.6), leaf))
    return Thing("potted plant", tuple(parts))


def plant(rng: np.random.Generator) -> Item:
    """A big potted plant."""
    return [_plant(rng, 0, 0, 0, float(rng.uniform(0.9, 1.4)))], (0.7, 0.7)


def chair(rng: np.random.Generator) -> Item:
    """A chair with four legs and a slatted or full back."""
    wood = palettes.wood(rng) if rng.random() < 0.7 else palettes.paint(rng)
    seat = palettes.fabric(rng) if rng.random() < 0.5 else wood
    parts = [box(0, 0, 0.42, (0.44, 0.44, 0.06), seat), *_legs(0.44, 0.44, 0.42, 0.05, wood)]
    parts += [box(side * 0.195, 0.2, 0.46, (0.05, 0.05, 0.5), wood) for side in (-1, 1)]
    if rng.random() < 0.5:
        parts.append(box(0, 0.2, 0.6, (0.36, 0.035, 0.34), seat))
    else:
        parts += [box(0, 0.2, 0.58 + 0.14 * k, (0.36, 0.03, 0.08), wood) for k in range(3)]
    return [Thing("chair", tuple(parts))], (0.5, 0.5)


def sofa(rng: np.random.Generator) -> Item:
    """A sofa or armchair with cushions and pillows."""
    cloth, width = palettes.fabric(rng), float(rng.choice([0.95, 1.7, 2.2]))
    arm, seats = 0.2, max(1, round(width / 0.75) - 1)
    parts = [
        box(0, 0, 0.1, (width, 0.85, 0.22), cloth),
        box(0, 0.34, 0.1, (width, 0.2, 0.75), cloth),
        *(box(side * (width - arm) / 2, -0.02, 0.1, (arm, 0.84, 0.5), cloth) for side in (-1, 1)),
        *(box(side * (width / 2 - 0.08), -0.3, 0, (0.06, 0.06, 0.1), palettes.wood(rng)) for side in (-1, 1)),
    ]
    share = (width - 2 * arm) / seats
    for k in range(seats):
        x = (k + 0.5 - seats / 2) * share
        parts.append(box(x, -0.08, 0.32, (share - 0.025, 0.66, 0.14), cloth))
    things = [Thing("sofa", tuple(parts))]
    for side in (-1, 1):
        if rng.random() < 0.6:
            x = side * (width / 2 - arm - 0.17)
            things.append(Thing("pillow", (ellipsoid(x, 0.13, 0.62, (0.2, 0.1, 0.18), palettes.fabric(rng)),)))
    return things, (width, 0.9)


def bed(rng: np.random.Generator) -> Item:
    """A bed with headboard, blanket and pillows."""
    width, wood, cover = float(rng.choice([1.0, 1.6])), palettes.wood(rng), palettes.fabric(rng)
    sheet = palettes.white(rng)
    frame = Thing(
        "bed",
        (
            box(0, 0, 0.12, (width, 2.0, 0.2), wood),
            box(0, 0.98, 0, (width + 0.06, 0.07, 1.0), wood),
            box(0, 0, 0.32, (width - 0.04, 1.94, 0.17), sheet),
            box(0, -0.26, 0.34, (width + 0.03, 1.42, 0.18), cover),
            *_legs(width, 1.96, 0.12, 0.08, wood),
        ),
    )
    pillow = palettes.white(rng) if rng.random() < 0.5 else palettes.fabric(rng)
    spots = (0.0,) if width < 1.3 else (-0.36, 0.36)
    pillows = [Thing("pillow", (ellipsoid(x, 0.72, 0.56, (0.31, 0.2, 0.1), pillow),)) for x in spots]
    return [frame, *pillows], (width + 0.06, 2.06)


def bookshelf(rng: np.random.Generator) -> Item:
    """An open shelf filled with books and trinkets."""
    width, levels, depth = float(rng.uniform(0.8, 1.5)), int(rng.integers(3, 6)), 0.32
    wood = palettes.wood(rng) if rng.random() < 0.7 else palettes.white(rng)
    pitch = 0.38
    height = levels * pitch + 0.04
    parts = [box(side * (width / 2 - 0.02), 0, 0, (0.04, depth, height), wood) for side in (-1, 1)]
    parts += [box(0, 0, level * pitch, (width, depth, 0.035), wood) for level in range(levels + 1)]
    parts.append(box(0, depth / 2 - 0.01, 0, (width, 0.02, height), wood))
    things = [Thing("bookshelf", tuple(parts))]
    rows = []
    for level in range(levels):
        share = float(rng.uniform(0.35, 0.97))
        first, second = palettes.pick(rng, palettes.FABRICS), palettes.pick(rng, palettes.ACCENTS)
        spines = palettes.make(rng, "books", first, second, scale=float(rng.uniform(0.035, 0.07)), grain=0.05)
        length, tall = (width - 0.1) * share, float(rng.uniform(0.22, 0.31))
        rows.append(box(-(width - 0.1 - length) / 2, 0.02, level * pitch + 0.035, (length, 0.22, tall), spines))
    things.append(Thing("books", tuple(rows)))
    return things, (width, depth)


def cabinet(rng: np.random.Generator) -> Item:
    """A chest of drawers or wardrobe, with a trinket on top if it is low."""
    width, height = float(rng.uniform(0.8, 1.4)), float(rng.choice([0.75, 0.95, 1.9]))
    body = palettes.pick(rng, palettes.WOODS if rng.random() < 0.6 else palettes.PAINTS)
    front = palettes.make(rng, "drawers", body, tuple(0.25 * x for x in body), scale=height / int(rng.integers(3, 5)))
    top = palettes.make(rng, "plain", tuple(0.8 * x for x in body), gloss=0.15)
    parts = (
        box(0, 0, 0.06, (width, 0.45, height - 0.06), front),
        box(0, 0, height, (width + 0.04, 0.48, 0.03), top),
        box(0, 0, 0, (width - 0.06, 0.4, 0.06), top),
    )
    things = [Thing("cabinet", parts)]
    if height < 1.2:
        things.append(trinket(rng, float(rng.uniform(-0.3, 0.3)) * width, 0.0, height + 0.03))
    return things, (width + 0.04, 0.5)


def night_stand(rng: np.random.Generator) -> Item:
    """A small chest with a lamp."""
    body = palettes.pick(rng, palettes.WOODS)
    front = palettes.make(rng, "drawers", body, tuple(0.3 * x for x in body), scale=0.24)
    return [Thing("night stand", (box(0, 0, 0, (0.46, 0.4, 0.5), front),)), _lamp(rng, 0, 0, 0.5, 0.45)], (0.5, 0.45)


def television(rng: np.random.Generator) -> Item:
    """A large television on a low cabinet."""
    width, body = float(rng.uniform(1.2, 1.6)), palettes.pick(rng, palettes.WOODS)
    front = palettes.make(rng, "drawers", body, tuple(0.3 * x for x in body), scale=0.22)
    stand = Thing("cabinet", (box(0, 0, 0, (width, 0.42, 0.44), front),))
    return [stand, _monitor(rng, 0, 0, 0.44, width * 0.72)], (width, 0.45)


def refrigerator(rng: np.random.Generator) -> Item:
    """A tall refrigerator with two doors and handles."""
    skin = palettes.white(rng) if rng.random() < 0.6 else palettes.metal(rng)
    dark, handle = palettes.make(rng, "plain", (0.04, 0.04, 0.04)), palettes.metal(rng)
    parts = (
        box(0, 0.04, 0.04, (0.66, 0.58, 1.7), dark),
        box(0, -0.27, 0.05, (0.68, 0.06, 1.05), skin),
        box(0, -0.27, 1.12, (0.68, 0.06, 0.62), skin),
        box(0, 0.04, 0.05, (0.68, 0.57, 1.7), skin),
        box(-0.26, -0.32, 0.65, (0.03, 0.04, 0.4), handle),
        box(-0.26, -0.32, 1.18, (0.03, 0.04, 0.28), handle),
    )
    return [Thing("refrigerator", parts)], (0.7, 0.68)


def boxes(rng: np.random.Generator) -> Item:
    """One or two cardboard boxes, stacked."""
    size = float(rng.uniform(0.35, 0.55))
    parts = [Thing("box", (box(0, 0, 0, (size, size * 0.8, size * 0.75), cardboard(rng)),))]
    if rng.random() < 0.5:
        parts.append(Thing("box", (box(0.04, 0, size * 0.75, (size * 0.7, size * 0.6, size * 0.5), cardboard(rng)),)))
    return parts, (size, size)


def ball(rng: np.random.Generator) -> Item:
    """A striped or chequered ball."""
    radius = float(rng.uniform(0.15, 0.3))
    first, second = palettes.pick(rng, palettes.ACCENTS), palettes.pick(rng, palettes.PAINTS)
    pattern = ("stripes", "checker", "dots")[rng.integers(3)]
    skin = palettes.make(rng, pattern, first, second, scale=radius * 0.6, gloss=0.5, grain=0.03)
    return [Thing("ball", (ellipsoid(0, 0, radius, (radius, radius, radius), skin),))], (2 * radius, 2 * radius)


def cat(rng: np.random.Generator) -> Item:
    """A sitting cat."""
    fur = palettes.make(rng, "stripes", palettes.pick(rng, palettes.WOODS), linear(60, 48, 40), scale=0.07, grain=0.3)
    parts = [
        ellipsoid(0, 0.06, 0.17, (0.13, 0.17, 0.17), fur),
        ellipsoid(0, -0.05, 0.24, (0.1, 0.1, 0.17), fur),
        ellipsoid(0, -0.1, 0.43, (0.1, 0.1, 0.09), fur),
        *(cylinder(side * 0.06, -0.1, 0.48, 0.035, 0.08, fur, taper=0.05) for side in (-1, 1)),
        *(cylinder(side * 0.05, -0.13, 0, 0.032, 0.2, fur) for side in (-1, 1)),
        limb(np.array([0.08, 0.18, 0.05]), np.array([0.3, 0.1, 0.04]), 0.03, fur),
    ]
    return [Thing("cat", tuple(parts))], (0.5, 0.5)


def rug(rng: np.random.Generator) -> Item:
    """A rectangular or round rug."""
    cloth = palettes.make(
        rng,
        ("stripes", "checker", "diamonds", "plain")[rng.integers(4)],
        palettes.pick(rng, palettes.FABRICS),
        palettes.pick(rng, palettes.FABRICS),
        scale=float(rng.uniform(0.15, 0.4)),
        grain=0.3,
    )
    width, depth = float(rng.uniform(1.5, 2.4)), float(rng.uniform(1.2, 1.8))
    if rng.random() < 0.3:
        return [Thing("rug", (cylinder(0, 0, 0, depth / 2, 0.015, cloth),))], (depth, depth)
    return [Thing("rug", (box(0, 0, 0, (width, depth, 0.015), cloth),))], (width, depth)


def picture(rng: np.random.Generator) -> Item:
    """A framed picture; hangs with its back at y = 0."""
    width, height = float(rng.uniform(0.45, 0.9)), float(rng.uniform(0.4, 0.7))
    first, second = palettes.pick(rng, palettes.ACCENTS), palettes.pick(rng, palettes.PAINTS)
    canvas = palettes.make(rng, "painting", first, second, grain=0.1)
    frame = palettes.wood(rng)
    parts = (box(0, -0.02, 0, (width, 0.04, height), frame),)
    return [Thing("picture", (*parts, box(0, -0.045, 0.05, (width - 0.1, 0.01, height - 0.1), canvas)))], (
        width,
        height,
    )


def window(rng: np.random.Generator) -> Item:
    """A window with a bright view and a white frame, half of the time with curtains."""
    width, height = float(rng.uniform(0.9, 1.5)), float(rng.uniform(1.0, 1.3))
    frame = palettes.white(rng)
    view = palettes.make(rng, "view", linear(190, 218, 245), frame.first, grain=0.0, glow=1.3)
    parts = (
        box(0, -0.02, 0, (width, 0.05, height), frame),
        box(0, -0.05, 0.07, (width - 0.14, 0.015, height - 0.14), view),
        box(0, -0.07, -0.03, (width + 0.12, 0.16, 0.04), frame),
    )
    things = [Thing("window", parts)]
    if rng.random() < 0.55:
        cloth = palettes.make(
            rng, "stripes", palettes.pick(rng, palettes.FABRICS), palettes.pick(rng, palettes.FABRICS), scale=0.07
        )
        sides = [box(side * (width / 2 + 0.1), -0.1, -0.35, (0.3, 0.08, height + 0.55), cloth) for side in (-1, 1)]
        rod = limb(
            np.array([-width / 2 - 0.3, -0.1, height + 0.2]),
            np.array([width / 2 + 0.3, -0.1, height + 0.2]),
            0.02,
            palettes.metal(rng),
        )
        things.append(Thing("curtain", (*sides, rod)))
    return things, (width + 0.6, height)


def door(rng: np.random.Generator) -> Item:
    """A panelled door with a frame and knob."""
    leaf = palettes.wood(rng) if rng.random() < 0.5 else palettes.white(rng)
    frame, dark = palettes.white(rng), palettes.make(rng, "plain", tuple(0.6 * x for x in leaf.first))
    parts = [box(0, -0.02, 0, (1.02, 0.06, 2.1), frame), box(0, -0.04, 0, (0.86, 0.05, 2.02), leaf)]
    parts += [
        box(side * 0.19, -0.06, low, (0.28, 0.02, tall), dark)
        for side in (-1, 1)
        for low, tall in ((0.2, 0.65), (1.0, 0.85))
    ]
    parts.append(ellipsoid(0.36, -0.1, 1.0, (0.035, 0.035, 0.035), palettes.metal(rng)))
    return [Thing("door", tuple(parts))], (1.1, 2.1)
