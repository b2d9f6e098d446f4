"""Sampling of furnished rooms: walls, wall-mounted things, furniture along the walls and on the floor."""

from __future__ import annotations

import numpy as np

from . import furniture, palettes
from .geometry import Thing, place, plane, turn
from .people import person
from .render import World

_ALONG_WALL = (
    *(furniture.sofa, furniture.bed, furniture.bookshelf, furniture.cabinet, furniture.television),
    *(furniture.desk, furniture.refrigerator, furniture.night_stand, furniture.bookshelf, furniture.sofa),
)
_FREE = (
    *(furniture.plant, furniture.floor_lamp, furniture.boxes, furniture.ball, furniture.cat, person),
    *(furniture.chair, person, furniture.plant),
)


def sample_room(rng: np.random.Generator) -> tuple[World, tuple[float, float, float]]:
    """A room centred on the origin, and its size (x, y, height) in metres."""
    size = (float(rng.uniform(4.6, 6.6)), float(rng.uniform(4.4, 6.0)), float(rng.uniform(2.5, 2.9)))
    things = _shell(rng, size)
    taken: list[np.ndarray] = []
    walls = _hang(rng, size, things)
    if rng.random() < 0.75:
        _stand(rng, furniture.table, size, things, taken, middle=True)
        _seat(rng, things, taken)
    kinds = rng.permutation(len(_ALONG_WALL))[: int(rng.integers(3, 6))]
    for kind in kinds:
        _lean(rng, _ALONG_WALL[kind], size, things, taken, walls)
    if rng.random() < 0.6:
        items, _ = furniture.rug(rng)
        spot = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6)), 0.0)
        things.extend(place(item, spot, float(rng.integers(2)) * np.pi / 2) for item in items)
    for kind in rng.permutation(len(_FREE))[: int(rng.integers(2, 4))]:
        _stand(rng, _FREE[kind], size, things, taken, middle=False)
    return World("room", tuple(things)), size


def _shell(rng: np.random.Generator, size: tuple[float, float, float]) -> list[Thing]:
    x, y, height = size[0] / 2, size[1] / 2, size[2]
    main = palettes.wall(rng)
    accent = palettes.wall(rng) if rng.random() < 0.5 else main
    order = [accent, main, main, main]
    sides = (((-x, 0, 1), (1, 0, 0)), ((x, 0, 1), (-1, 0, 0)), ((0, -y, 1), (0, 1, 0)), ((0, y, 1), (0, -1, 0)))
    walls = [plane(point, normal, order[(k + int(main.seed)) % 4]) for k, (point, normal) in enumerate(sides)]
    white = palettes.white(rng)
    skirting = [furniture.box(0, side * (y - 0.01), 0, (2 * x, 0.02, 0.09), white) for side in (-1, 1)] + [
        furniture.box(side * (x - 0.01), 0, 0, (0.02, 2 * y, 0.09), white) for side in (-1, 1)
    ]
    return [
        Thing("floor", (plane((0, 0, 0), (0, 0, 1), palettes.floor(rng)),)),
        Thing("ceiling", (plane((0, 0, height), (0, 0, -1), white),)),
        Thing("wall", tuple(walls)),
        Thing("wall", tuple(skirting)),
    ]


def _against(wall: int, along: float, size: tuple[float, float, float], gap: float) -> tuple[float, float, float]:
    """Position (x, y) and yaw of something whose back is ``gap`` metres from wall 0..3 (+y, -x, -y, +x)."""
    half = size[1] / 2 if wall % 2 == 0 else size[0] / 2
    yaw = wall * np.pi / 2
    x, y, _ = turn(yaw) @ np.array([along, half - gap, 0.0])
    return float(x), float(y), yaw


def _hang(rng: np.random.Generator, size: tuple[float, float, float], things: list[Thing]) -> dict[int, list]:
    """Windows, doors and pictures; returns the blocked intervals (low, high, bottom) of each wall."""
    blocked: dict[int, list] = {0: [], 1: [], 2: [], 3: []}
    kinds = [
        furniture.window,
        furniture.door,
        furniture.picture,
        furniture.picture,
        furniture.window,
        furniture.picture,
    ]
    for kind in kinds[: int(rng.integers(4, 7))]:
        items, (width, _) = kind(rng)
        bottom = {furniture.window: 0.95, furniture.door: 0.0}.get(kind, float(rng.uniform(1.35, 1.55)))
        for _ in range(12):
            wall = int(rng.integers(4))
            room = (size[0] if wall % 2 == 0 else size[1]) / 2 - width / 2 - 0.2
            along = float(rng.uniform(-room, room))
            low, high = along - width / 2 - 0.1, along + width / 2 + 0.1
            if any(low < b and a < high for a, b, _ in blocked[wall]):
                continue
            x, y, yaw = _against(wall, along, size, 0.001)
            things.extend(place(item, (x, y, bottom), yaw) for item in items)
            blocked[wall].append((low, high, bottom))
            break
    return blocked


def _footprint(x: float, y: float, yaw: float, extent: tuple[float, float]) -> np.ndarray:
    """(4,) axis-aligned bounds x0, x1, y0, y1 of a turned footprint."""
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    width, depth = c * extent[0] + s * extent[1], s * extent[0] + c * extent[1]
    return np.array([x - width / 2, x + width / 2, y - depth / 2, y + depth / 2])


def _free(area: np.ndarray, taken: list[np.ndarray], margin: float) -> bool:
    a = area + margin * np.array([-1, 1, -1, 1])
    return not any(a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3] for b in taken)


def _lean(
    rng: np.random.Generator,
    builder: furniture.Builder,
    size: tuple[float, float, float],
    things: list[Thing],
    taken: list[np.ndarray],
    walls: dict[int, list],
) -> None:
    """Put one piece with its back to a wall, where neither furniture nor a door, nor a window behind tall ones, is."""
    items, extent = builder(rng)
    tall = max(np.max([p.corners[:, 2].max() for p in item.primitives]) for item in items)
    for _ in range(20):
        wall = int(rng.integers(4))
        room = (size[0] if wall % 2 == 0 else size[1]) / 2 - extent[0] / 2 - 0.05
        along = float(rng.uniform(-room, room))
        x, y, yaw = _against(wall, along, size, extent[1] / 2 + 0.12)
        area = _footprint(x, y, yaw, extent)
        low, high = along - extent[0] / 2, along + extent[0] / 2
        if any(low < b and a < high and tall > bottom for a, b, bottom in walls[wall]):
            continue
        if _free(area, taken, 0.08):
            taken.append(area)
            walls[wall].append((low, high, 0.0))
            things.extend(place(item, (x, y, 0.0), yaw) for item in items)
            return


def _stand(
    rng: np.random.Generator,
    builder: furniture.Builder,
    size: tuple[float, float, float],
    things: list[Thing],
    taken: list[np.ndarray],
    middle: bool,
) -> None:
    """Put one piece anywhere on the floor (near the centre if ``middle``), at any angle."""
    items, extent = builder(rng)
    reach = 0.7 if middle else 1.0
    for _ in range(20):
        half = [(s / 2 - max(extent) / 2 - 0.15) * (0.35 if middle else reach) for s in size[:2]]
        x, y = float(rng.uniform(-half[0], half[0])), float(rng.uniform(-half[1], half[1]))
        yaw = float(rng.integers(4)) * np.pi / 2 if middle else float(rng.uniform(0, 2 * np.pi))
        area = _footprint(x, y, yaw, extent)
        if _free(area, taken, 0.1):
            taken.append(area)
            things.extend(place(item, (x, y, 0.0), yaw) for item in items)
            return


def _seat(rng: np.random.Generator, things: list[Thing], taken: list[np.ndarray]) -> None:
    """Chairs of one kind around the table that was placed last, facing it."""
    table = taken[-1]
    center, half = np.array([table[:2].mean(), table[2:].mean()]), np.array([np.ptp(table[:2]), np.ptp(table[2:])]) / 2
    items, extent = furniture.chair(rng)
    for k in rng.permutation(4)[: int(rng.integers(1, 5))]:
        # The chair's front (-y) must look at the table, so it stands on the side its back points to.
        yaw = k * np.pi / 2 + float(rng.uniform(-0.25, 0.25))
        out = (turn(k * np.pi / 2) @ np.array([0.0, 1.0, 0.0]))[:2]
        x, y = center + out * (half + 0.22)
        taken.append(_footprint(float(x), float(y), 0.0, extent))
        things.extend(place(item, (float(x), float(y), 0.0), yaw) for item in items)
