"""Solid primitives, their ray intersections, and the things built of them.

World frame: x and y horizontal, z up, metres. A ray is ``origin + t * direction``; directions are not
normalised: camera rays have unit length along the optical axis, so that ``t`` *is* the z-depth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from .materials import Material

Kind = Literal["plane", "box", "ellipsoid", "frustum"]
Rays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Primitive:
    """One convex solid (or a one-sided infinite plane) with one material.

    ``rotation`` rows are the local axes in world coordinates; ``half`` are half extents along them. A plane
    passes through ``center`` and faces local +z. A frustum stands along local z, radius ``half[:2]`` at its
    bottom and ``taper`` times that at its top. ``part`` names the body part of a person.
    """

    kind: Kind
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    rotation: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    taper: float = 1.0
    part: str = ""

    @cached_property
    def corners(self) -> np.ndarray:
        """(8, 3) corners of the oriented bounding box."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        half = np.array(self.half)
        if self.kind == "frustum":
            half = half * (max(1.0, self.taper), max(1.0, self.taper), 1.0)
        return np.array(self.center) + (signs * half) @ np.array(self.rotation)


@dataclass(frozen=True)
class Thing:
    """One instance: primitives that share a class, for example the slab and legs of a table."""

    class_name: str
    primitives: tuple[Primitive, ...]

    @cached_property
    def bounds(self) -> tuple[np.ndarray, float]:
        """Centre (3,) and radius of a sphere around the thing; infinite radius when it holds a plane."""
        if any(p.kind == "plane" for p in self.primitives):
            return np.zeros(3), np.inf
        points = np.concatenate([p.corners for p in self.primitives])
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        return center, float(np.sqrt(((points - center) ** 2).sum(axis=1).max()))

    @cached_property
    def top(self) -> float:
        """Height of the highest point, metres; 0 for planes, which enclose the world and cast no shadows."""
        return max(0.0 if p.kind == "plane" else float(p.corners[:, 2].max()) for p in self.primitives)


def turn(angle: float) -> np.ndarray:
    """(3, 3) rotation by ``angle`` radians about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def place(thing: Thing, position: tuple[float, float, float], yaw: float) -> Thing:
    """The thing turned by ``yaw`` about its local origin and moved to ``position``."""
    spin = turn(yaw)
    moved = []
    for primitive in thing.primitives:
        center = spin @ np.array(primitive.center) + np.array(position)
        rotation = np.array(primitive.rotation) @ spin.T
        moved.append(replace(primitive, center=tuple(map(float, center)), rotation=_rows(rotation)))
    return replace(thing, primitives=tuple(moved))


def _rows(matrix: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    # Exact zeros let `_rotate` skip work for upright things.
    return tuple(tuple(0.0 if abs(x) < 1e-12 else float(x) for x in row) for row in matrix)


def box(
    x: float, y: float, z: float, size: tuple[float, float, float], material: Material, part: str = ""
) -> Primitive:
    """Upright box of full ``size`` whose bottom centre is (x, y, z)."""
    half = (size[0] / 2, size[1] / 2, size[2] / 2)
    return Primitive("box", (x, y, z + half[2]), half, material, part=part)


def ellipsoid(
    x: float, y: float, z: float, radii: tuple[float, float, float], material: Material, part: str = ""
) -> Primitive:
    """Ellipsoid centred on (x, y, z)."""
    return Primitive("ellipsoid", (x, y, z), radii, material, part=part)


def cylinder(
    x: float, y: float, z: float, radius: float, height: float, material: Material, taper: float = 1.0, part: str = ""
) -> Primitive:
    """Upright cylinder, or cone frustum of top radius ``taper * radius``, standing on (x, y, z)."""
    return Primitive("frustum", (x, y, z + height / 2), (radius, radius, height / 2), material, taper=taper, part=part)


def limb(
    start: np.ndarray, end: np.ndarray, radius: float, material: Material, taper: float = 1.0, part: str = ""
) -> Primitive:
    """Cylinder or frustum between two points of space."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, (1.0, 0.0, 0.0) if abs(axis[0]) < 0.9 else (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    rotation = _rows(np.stack([side, np.cross(axis, side), axis]))
    half = (radius, radius, float(np.linalg.norm(end - start)) / 2)
    center = tuple(map(float, (start + end) / 2))
    return Primitive("frustum", center, half, material, rotation=rotation, taper=taper, part=part)


def plane(point: tuple[float, float, float], normal: tuple[float, float, float], material: Material) -> Primitive:
    """Infinite one-sided plane; ``normal`` is one of the six signed axes."""
    n = np.array(normal, dtype=np.float64)
    first = np.array([1.0, 0.0, 0.0]) if abs(n[0]) < 0.5 else np.array([0.0, 1.0, 0.0])
    return Primitive(
        "plane", point, (1.0, 1.0, 1.0), material, rotation=_rows(np.stack([first, np.cross(n, first), n]))
    )


def rotate(row: tuple[float, float, float], rays: Rays) -> np.ndarray:
    """Component of ``rays`` along the axis ``row``, skipping zero coefficients."""
    total = None
    for weight, component in zip(row, rays):
        if weight == 0.0:
            continue
        term = component if weight == 1.0 else component * np.float32(weight)
        total = term if total is None else total + term
    return total if total is not None else np.zeros_like(rays[0])


def intersect(primitive: Primitive, origin: Rays, directions: Rays) -> np.ndarray:
    """Smallest ``t > 0`` at which each ray enters the primitive, ``inf`` where it misses.

    Args:
        primitive: what to hit; rays that start inside a solid do not hit it.
        origin: x, y, z, float32 scalars or arrays of the shape of the directions.
        directions: x, y, z float32 arrays.
    """
    offset = tuple(o - np.float32(c) for o, c in zip(origin, primitive.center))
    return hit(primitive, tuple(rotate(row, offset) for row in primitive.rotation), directions)


def hit(primitive: Primitive, o: Rays, directions: Rays) -> np.ndarray:
    """:func:`intersect` for origins ``o`` already along the primitive's axes and relative to its centre."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if primitive.kind == "plane":
            toward = rotate(primitive.rotation[2], directions)
            t = -o[2] / toward
            return np.where((toward < 0) & (t > 0), t, np.float32(np.inf))
        d = tuple(rotate(row, directions) for row in primitive.rotation)
        if primitive.kind == "box":
            return _intersect_box(primitive, o, d)
        half = [np.float32(h) for h in primitive.half]
        o = tuple(a / h for a, h in zip(o, half))
        d = tuple(a / h for a, h in zip(d, half))
        if primitive.kind == "ellipsoid":
            return _intersect_sphere(o, d)
        return _intersect_frustum(primitive.taper, o, d)


def _intersect_box(primitive: Primitive, o: Rays, d: Rays) -> np.ndarray:
    near = far = None
    for axis in range(3):
        inverse = np.float32(1.0) / d[axis]
        middle = o[axis] * inverse
        reach = np.abs(inverse) * np.float32(primitive.half[axis])
        # A ray inside the slab and parallel to it gives 0 * inf = nan; fmax/fmin ignore that axis.
        enter, leave = -middle - reach, reach - middle
        near = enter if near is None else np.fmax(near, enter)
        far = leave if far is None else np.fmin(far, leave)
    return np.where((near <= far) & (near > 0), near, np.float32(np.inf))


def _closest(o: Rays, d: Rays) -> tuple[np.ndarray, np.ndarray, Rays]:
    """Squared speed, time and point of closest approach to the origin: keeps float32 roots accurate far away."""
    speed = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    time = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) / speed
    return speed, time, tuple(a + time * b for a, b in zip(o, d))


def _intersect_sphere(o: Rays, d: Rays) -> np.ndarray:
    speed, time, q = _closest(o, d)
    room = np.float32(1.0) - (q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
    t = time - np.sqrt(np.maximum(room, 0) / speed)
    return np.where((room > 0) & (t > 0), t, np.float32(np.inf))


def _intersect_frustum(taper: float, o: Rays, d: Rays) -> np.ndarray:
    _, time, q = _closest(o, d)
    base, slope = np.float32((1 + taper) / 2), np.float32((taper - 1) / 2)
    radius, growth = base + slope * q[2], slope * d[2]
    a = d[0] * d[0] + d[1] * d[1] - growth * growth
    b = q[0] * d[0] + q[1] * d[1] - radius * growth
    c = q[0] * q[0] + q[1] * q[1] - radius * radius
    root = np.sqrt(b * b - a * c)  # nan where the ray misses; comparisons with nan are False
    best = np.full(a.shape, np.inf, dtype=np.float32)
    for t in ((-b - root) / a,) if slope == 0 else ((-b - root) / a, (-b + root) / a):
        hit = (np.abs(q[2] + t * d[2]) <= 1) & (time + t > 0)
        np.fmin(best, np.where(hit, t, np.float32(np.inf)), out=best)
    end = np.where(o[2] > 0, np.float32(1.0), np.float32(-1.0))  # only the cap on the ray's side can be an entry
    t = (end - q[2]) / d[2]
    x, y, limit = q[0] + t * d[0], q[1] + t * d[1], base + slope * end
    hit = (x * x + y * y <= limit * limit) & (time + t > 0) & (np.abs(o[2]) > 1)
    np.fmin(best, np.where(hit, t, np.float32(np.inf)), out=best)
    return time + best


def surface(primitive: Primitive, points: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outward unit normals (3, n) in the world frame and texture coordinates u, v in metres of surface points."""
    offset = tuple(p - np.float32(c) for p, c in zip(points, primitive.center))
    p = np.stack([rotate(row, offset) for row in primitive.rotation])
    half = np.array(primitive.half, dtype=np.float32)[:, None]
    rotation = np.array(primitive.rotation, dtype=np.float32)
    if primitive.kind == "plane":
        return np.repeat(rotation[2][:, None], p.shape[1], axis=1), p[0], p[1]
    if primitive.kind == "box":
        axis = np.abs(p / half).argmax(axis=0)
        sign = np.sign(np.take_along_axis(p, axis[None], axis=0)[0])
        return rotation[axis].T * sign, np.where(axis == 0, p[1], p[0]), np.where(axis == 2, p[1], p[2])
    if primitive.kind == "ellipsoid":
        local = p / (half * half)
    else:
        slope = np.float32((primitive.taper - 1) / 2)
        unit = p / half
        radius = np.float32((1 + primitive.taper) / 2) + slope * unit[2]
        local = np.stack([unit[0], unit[1], -radius * slope]) / half
        gap_cap, gap_side = np.float32(1) - np.abs(unit[2]), np.abs(np.hypot(unit[0], unit[1]) - radius)
        cap = gap_cap * half[2] < gap_side * half[0]
        local = np.where(cap, np.stack([np.zeros_like(radius)] * 2 + [np.sign(unit[2])]), local)
    normal = np.stack([rotate(tuple(rotation[:, k].tolist()), local) for k in range(3)])
    normal /= np.sqrt((normal * normal).sum(axis=0))
    if primitive.kind == "frustum":
        around = np.arctan2(p[1], p[0]) * np.float32(primitive.half[0])
        return normal, np.where(cap, p[0], around), np.where(cap, p[1], p[2])
    axis = np.abs(local).argmax(axis=0)  # an ellipsoid is mapped like the box around it: no pinched poles
    return normal, np.where(axis == 0, p[1], p[0]), np.where(axis == 2, p[1], p[2])
