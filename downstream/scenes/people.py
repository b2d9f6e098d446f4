"""Person-like figures whose primitives carry the part names of PASCAL-Part."""

from __future__ import annotations

import numpy as np

from . import palettes
from .geometry import Primitive, Thing, box, cylinder, ellipsoid, limb
from .materials import Material


def person(rng: np.random.Generator) -> tuple[list[Thing], tuple[float, float]]:
    """A standing or walking person of 1.55 to 1.85 m, facing -y; same frame and result as the furniture builders."""
    tall = float(rng.uniform(0.9, 1.06))
    skin = palettes.make(rng, "plain", palettes.pick(rng, palettes.SKINS), grain=0.05, gloss=0.05)
    shirt, trousers = palettes.fabric(rng), palettes.make(rng, "plain", palettes.pick(rng, palettes.FABRICS), grain=0.2)
    hair = palettes.make(rng, "noise", (0.03, 0.02, 0.015), palettes.pick(rng, palettes.WOODS, 0.3), scale=0.1)
    shoes = palettes.make(rng, "plain", (0.03, 0.03, 0.035), gloss=0.3)
    parts = [
        Primitive("frustum", (0, 0, 1.15 * tall), (0.17, 0.11, 0.28 * tall), shirt, taper=1.2, part="torso"),
        ellipsoid(0, 0, 0.88 * tall, (0.175, 0.115, 0.1), trousers, part="torso"),
        cylinder(0, 0, 1.42 * tall, 0.055, 0.1, skin, part="neck"),
        ellipsoid(0, 0, 1.62 * tall, (0.092, 0.108, 0.13), skin, part="head"),
        ellipsoid(0, 0.03, 1.665 * tall, (0.1, 0.112, 0.105), hair, part="hair"),
    ]
    stride = float(rng.choice([0.0, 0.0, 0.16, 0.24])) * float(rng.choice([-1, 1]))
    for side, letter in ((-1, "r"), (1, "l")):  # it faces -y: its right hand is at -x
        parts += _leg(side, letter, tall, side * stride, trousers, shoes)
        parts += _arm(rng, side, letter, tall, -side * stride, shirt, skin)
    return [Thing("person", tuple(parts))], (0.6, 0.5)


def _leg(side: int, letter: str, tall: float, stride: float, cloth: Material, shoe: Material) -> list[Primitive]:
    hip = np.array([side * 0.09, 0.0, 0.88 * tall])
    knee = np.array([side * 0.1, stride * 0.6 - 0.02, 0.48 * tall])
    ankle = np.array([side * 0.1, stride * 1.2, 0.07])
    return [
        limb(knee, hip, 0.062, cloth, taper=1.35, part=f"{letter}uleg"),
        limb(ankle, knee, 0.045, cloth, taper=1.4, part=f"{letter}lleg"),
        box(float(ankle[0]), float(ankle[1]) - 0.06, 0.0, (0.09, 0.25, 0.08), shoe, part=f"{letter}foot"),
    ]


def _arm(
    rng: np.random.Generator, side: int, letter: str, tall: float, swing: float, shirt: Material, skin: Material
) -> list[Primitive]:
    shoulder = np.array([side * 0.215, 0.0, 1.38 * tall])
    raised = rng.random() < 0.25
    elbow = shoulder + np.array([side * 0.07, swing * 0.6 - 0.02, -0.27 * tall])
    hand = elbow + (
        np.array([side * 0.08, -0.2, 0.14]) if raised else np.array([side * 0.02, swing * 0.6 - 0.06, -0.25 * tall])
    )
    return [
        ellipsoid(*map(float, shoulder), (0.075, 0.075, 0.075), shirt, part=f"{letter}uarm"),
        limb(elbow, shoulder, 0.045, shirt, taper=1.25, part=f"{letter}uarm"),
        limb(hand, elbow, 0.036, skin, taper=1.2, part=f"{letter}larm"),
        ellipsoid(*map(float, hand), (0.045, 0.05, 0.06), skin, part=f"{letter}hand"),
    ]
