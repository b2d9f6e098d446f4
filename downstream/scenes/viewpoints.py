"""Where pictures are taken from and under what light: cameras and lightings of a room or street."""

from __future__ import annotations

import numpy as np

from .classes import CLASSES, class_id
from .lighting import Lamp, Lighting
from .render import Camera, World, cast

_PREVIEW = (36, 48)


def sample_camera(rng: np.random.Generator, world: World, extent: tuple[float, float, float] | float) -> Camera:
    """The best of several random cameras, judged on a tiny preview.

    Args:
        rng: source of randomness.
        world: the room or street.
        extent: what ``sample_room`` or ``sample_street`` returned beside the world.

    Cameras inside or within arm's reach of a thing are not considered.
    """
    clear: list[Camera] = []
    for _ in range(40):
        camera = _room_camera(rng, extent) if world.kind == "room" else _street_camera(rng, extent)
        if clearance(world, camera) > (0.3 if world.kind == "room" else 0.7):
            clear.append(camera)
        if len(clear) == 3:
            break
    return max(clear or [camera], key=lambda candidate: view_score(world, candidate))


def clearance(world: World, camera: Camera) -> float:
    """Distance in metres from the camera to the nearest primitive's bounding box; 0 inside one. Planes do not count."""
    local = np.einsum("pij,pj->pi", world.rotations, np.array(camera.position) - world.centers)
    half = np.array([p.half for p in world.primitives]) * np.array(
        [[max(1.0, p.taper)] * 2 + [1] for p in world.primitives]
    )
    gaps = np.sqrt((np.maximum(np.abs(local) - half, 0) ** 2).sum(axis=1))
    return float(gaps[~world.endless].min(initial=np.inf))


def _room_camera(rng: np.random.Generator, size: tuple[float, float, float]) -> Camera:
    angle = float(rng.uniform(0, 2 * np.pi))
    reach = min(abs((size[0] / 2 - 0.35) / np.cos(angle)), abs((size[1] / 2 - 0.35) / np.sin(angle)))
    reach = float(min(reach, 3.4)) * float(rng.uniform(0.9, 1.0))
    position = (reach * np.cos(angle), reach * np.sin(angle), float(rng.uniform(1.25, 1.85)))
    target = (float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.6, 1.1)))
    return Camera(tuple(map(float, position)), target, float(np.radians(rng.uniform(68, 80))))


def _street_camera(rng: np.random.Generator, half: float) -> Camera:
    y = float(rng.uniform(-1, 1)) * (half + 1.4)
    position = (float(rng.uniform(-14, -5)), y, float(rng.uniform(1.4, 2.6)))
    target = (float(rng.uniform(1, 7)), float(rng.uniform(-0.7, 0.7)) * half - 0.2 * y, float(rng.uniform(1.1, 2.0)))
    return Camera(position, target, float(np.radians(rng.uniform(58, 74))))


def view_score(world: World, camera: Camera) -> float:
    """How well a camera shows the world: several things visible, none close to the lens or filling the picture."""
    view = cast(world, camera, _PREVIEW)
    near = float(np.percentile(view.depth, 4))
    share = np.bincount(view.instance.ravel(), minlength=len(world.things) + 1)[1:] / view.instance.size
    salient = np.array([CLASSES[class_id(t.class_name) - 1].salient for t in world.things])
    visible = float(((share > 0.004) & salient).sum())
    largest = float((share * salient).max())
    return min(visible, 8.0) - 14 * max(0.0, largest - 0.3) - 10 * max(0.0, 0.9 - near) + float((share * salient).sum())


def _temperature(rng: np.random.Generator, spread: float) -> np.ndarray:
    """RGB gains of a light between warm (tungsten) and cool (shade), with mean 1."""
    warmth = float(rng.uniform(-1, 1)) * spread
    tint = float(rng.uniform(-1, 1)) * spread * 0.25
    gains = np.array([1 + 0.36 * warmth, 1 + tint * 0.3, 1 - 0.46 * warmth])
    return gains / gains.mean()


def sample_lighting(rng: np.random.Generator, world: World, extent: tuple[float, float, float] | float) -> Lighting:
    """Random lamps (room) or sun and sky (street), with random colour temperature, white balance and exposure."""
    balance = _temperature(rng, 0.45) * float(np.exp(rng.uniform(np.log(0.62), np.log(1.45))))
    if world.kind == "room":
        return _indoors(rng, extent, balance)
    return _outdoors(rng, balance)


def _indoors(rng: np.random.Generator, size: tuple[float, float, float], balance: np.ndarray) -> Lighting:
    lamps = []
    count = int(rng.integers(1, 4))
    for _ in range(count):
        spot = (float(rng.uniform(-0.4, 0.4)) * size[0], float(rng.uniform(-0.4, 0.4)) * size[1])
        height = size[2] - float(rng.uniform(0.12, 0.5))
        colour = _temperature(rng, 1.0) * float(rng.uniform(0.75, 1.15)) / count**0.75
        lamps.append(Lamp((*spot, height), tuple(map(float, colour)), float(rng.uniform(0.08, 0.3)), 2.6))
    ambient = _temperature(rng, 0.5) * float(rng.uniform(0.22, 0.45))
    return Lighting(tuple(lamps), tuple(0.95 * ambient), tuple(0.8 * ambient), tuple(balance))


def _outdoors(rng: np.random.Generator, balance: np.ndarray) -> Lighting:
    moment = rng.choice(["noon", "low", "overcast", "dusk"], p=[0.42, 0.28, 0.15, 0.15])
    height = {"noon": rng.uniform(0.7, 1.1), "low": rng.uniform(0.28, 0.5)}.get(moment, rng.uniform(0.5, 1.0))
    angle = float(rng.uniform(0, 2 * np.pi))
    sun = 200 * np.array([np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)])
    power, zenith, horizon, ambient, fog = {
        "noon": ((1.7, 1.6, 1.4), (0.14, 0.34, 0.78), (0.6, 0.76, 0.92), (0.6, 0.7, 0.85), 0.003),
        "low": ((1.9, 1.2, 0.65), (0.22, 0.34, 0.62), (0.98, 0.7, 0.42), (0.58, 0.54, 0.6), 0.005),
        "overcast": ((0.4, 0.41, 0.43), (0.62, 0.66, 0.7), (0.8, 0.82, 0.84), (0.95, 0.98, 1.04), 0.008),
        "dusk": ((0.45, 0.36, 0.42), (0.1, 0.12, 0.32), (0.72, 0.42, 0.4), (0.52, 0.5, 0.68), 0.006),
    }[str(moment)]
    radius = 12.0 if moment in ("overcast", "dusk") else 2.5
    lamp = Lamp(tuple(map(float, sun)), power, radius, float("inf"))
    below = tuple(0.5 * a for a in ambient)
    return Lighting((lamp,), ambient, below, tuple(balance), zenith, horizon, fog * float(rng.uniform(0.4, 1.5)))
