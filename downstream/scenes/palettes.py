"""The pools of colours and materials that all rooms and streets draw from.

They are shared on purpose: no colour or pattern belongs to one room alone, so a colour histogram cannot name the
room; only the combination of patterns, objects and their arrangement can.
"""

from __future__ import annotations

import numpy as np

from .materials import Colour, Material, Pattern, linear

WOODS = ((118, 76, 44), (160, 112, 66), (86, 54, 36), (196, 156, 104), (138, 90, 60))
FABRICS = (
    *((150, 52, 48), (52, 84, 132), (70, 110, 82), (176, 138, 70), (104, 76, 118), (186, 180, 166)),
    *((72, 74, 82), (196, 112, 72), (58, 124, 132), (150, 98, 110), (112, 122, 64), (222, 206, 172)),
)
PAINTS = (
    *((226, 218, 200), (200, 208, 214), (214, 196, 168), (176, 196, 176), (206, 178, 170), (164, 184, 204)),
    *((232, 226, 222), (214, 206, 150), (148, 158, 152), (190, 170, 200)),
)
ACCENTS = ((188, 60, 50), (40, 92, 160), (228, 178, 52), (60, 136, 90), (238, 236, 230), (44, 46, 54), (214, 116, 44))
STONES = ((150, 76, 60), (176, 150, 124), (120, 116, 112), (196, 182, 160), (142, 98, 76), (108, 120, 132))
LEAVES = ((52, 104, 46), (84, 128, 50), (40, 84, 52), (124, 130, 52))
SKINS = ((226, 182, 150), (190, 136, 100), (128, 84, 60), (92, 60, 46))


def pick(rng: np.random.Generator, colours: tuple[tuple[int, int, int], ...], vary: float = 0.12) -> Colour:
    """One linear colour of the pool, its brightness varied by up to ``vary``."""
    red, green, blue = colours[rng.integers(len(colours))]
    factor = 1 + vary * float(rng.uniform(-1, 1))
    return linear(*(min(255, x * factor) for x in (red, green, blue)))


def make(
    rng: np.random.Generator,
    pattern: Pattern,
    first: Colour,
    second: Colour = (0.5, 0.5, 0.5),
    scale: float = 0.3,
    grain: float = 0.12,
    gloss: float = 0.0,
    glow: float = 0.0,
) -> Material:
    """A :class:`Material` with random details."""
    return Material(pattern, first, second, scale, grain, gloss, glow, seed=int(rng.integers(1, 4000)))


def wood(rng: np.random.Generator) -> Material:
    """Furniture wood with grain."""
    first = pick(rng, WOODS)
    return make(rng, "wood", first, tuple(0.55 * x for x in first), grain=0.1, gloss=0.12)


def fabric(rng: np.random.Generator) -> Material:
    """Upholstery: plain most of the time, sometimes striped, checked or dotted."""
    pattern = ("plain", "plain", "plain", "stripes", "checker", "dots", "diamonds")[rng.integers(7)]
    return make(rng, pattern, pick(rng, FABRICS), pick(rng, FABRICS), scale=float(rng.uniform(0.08, 0.2)), grain=0.2)


def metal(rng: np.random.Generator) -> Material:
    """Painted or bare metal, glossy."""
    grey = float(rng.uniform(0.08, 0.5))
    return make(rng, "plain", (grey, grey, grey * 1.05), grain=0.05, gloss=0.5)


def paint(rng: np.random.Generator, gloss: float = 0.25) -> Material:
    """Lacquer in a strong colour."""
    return make(rng, "plain", pick(rng, ACCENTS), grain=0.05, gloss=gloss)


def white(rng: np.random.Generator) -> Material:
    """Off-white lacquer."""
    return make(rng, "plain", linear(232, 230, 224), grain=0.05, gloss=0.1)


def foliage(rng: np.random.Generator) -> Material:
    """Leaves seen from afar."""
    first = pick(rng, LEAVES)
    return make(rng, "noise", tuple(0.4 * x for x in first), tuple(1.35 * x for x in first), scale=0.35, grain=0.5)


def wall(rng: np.random.Generator) -> Material:
    """Paint, wallpaper, brick or panelling for the walls of a room."""
    pattern = ("plain", "plain", "stripes", "diamonds", "dots", "bricks", "checker", "planks")[rng.integers(8)]
    first = pick(rng, PAINTS)
    if pattern == "bricks":
        return make(rng, pattern, pick(rng, STONES), linear(200, 194, 184), scale=0.11, grain=0.25)
    if pattern == "planks":
        wooden = pick(rng, WOODS)
        return make(rng, pattern, wooden, tuple(0.4 * x for x in wooden), scale=0.16)
    factor = float(rng.choice([0.55, 0.75, 1.25]))
    second = tuple(min(0.95, factor * x) for x in first)
    return make(rng, pattern, first, second, scale=float(rng.uniform(0.16, 0.42)), grain=0.06)


def floor(rng: np.random.Generator) -> Material:
    """Boards, tiles, chequered stone or carpet."""
    pattern = ("planks", "planks", "tiles", "checker", "noise", "plain")[rng.integers(6)]
    if pattern == "planks":
        first = pick(rng, WOODS)
        return make(rng, pattern, first, tuple(0.35 * x for x in first), scale=float(rng.uniform(0.1, 0.18)), gloss=0.1)
    if pattern in ("tiles", "checker"):
        first, second = pick(rng, STONES), pick(rng, PAINTS)
        return make(rng, pattern, second, first, scale=float(rng.uniform(0.3, 0.55)), gloss=0.2)
    first = pick(rng, FABRICS)
    return make(rng, pattern, first, tuple(0.75 * x for x in first), scale=0.12, grain=0.3)
