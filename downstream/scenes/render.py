"""The ray caster: a world, a camera and a lighting become an image with exact depth, normals and labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .classes import class_id
from .geometry import Primitive, Thing, hit, rotate, surface
from .lighting import Lighting, occlusion, shade
from .materials import albedo


@dataclass(frozen=True)
class World:
    """A room or a street: its things, in instance order (instance id = index + 1), static over all pictures of it."""

    kind: str  # "room" or "street"
    things: tuple[Thing, ...]

    @cached_property
    def primitives(self) -> tuple[Primitive, ...]:
        """The primitives of all things, in order; their positions here are the surface indices."""
        return tuple(p for thing in self.things for p in thing.primitives)

    @cached_property
    def owners(self) -> np.ndarray:
        """(P + 1,) uint8 instance id of each primitive; the last entry, reached as index -1, is 0 for sky."""
        return np.array([n for n, t in enumerate(self.things, 1) for _ in t.primitives] + [0], dtype=np.uint8)

    @cached_property
    def corners(self) -> np.ndarray:
        """(P, 8, 3) corners of the primitives' bounding boxes."""
        return np.stack([p.corners for p in self.primitives])

    @cached_property
    def centers(self) -> np.ndarray:
        """(P, 3) centres of the primitives."""
        return np.array([p.center for p in self.primitives])

    @cached_property
    def rotations(self) -> np.ndarray:
        """(P, 3, 3) axes of the primitives."""
        return np.array([p.rotation for p in self.primitives])

    @cached_property
    def endless(self) -> np.ndarray:
        """(P,) bool: the primitive is an infinite plane."""
        return np.array([p.kind == "plane" for p in self.primitives])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without roll: position and target in world metres, horizontal field of view in radians."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float

    def axes(self) -> np.ndarray:
        """(3, 3) rows right, down, forward: unit camera axes in world coordinates."""
        forward = np.array(self.target, dtype=np.float64) - np.array(self.position, dtype=np.float64)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def focal(self, width: int) -> float:
        """Focal length in pixels for an image ``width`` pixels wide."""
        return width / 2 / float(np.tan(self.fov / 2))


@dataclass(frozen=True)
class Geometry:
    """What each pixel of a picture shows.

    ``depth`` (H, W) float32 z-depth in metres along the optical axis, ``inf`` where nothing is hit; ``surface``
    (H, W) int16 index into ``World.primitives``, -1 for none; ``instance`` (H, W) uint8, 0 for none; ``directions``
    (3, H, W) float32 world rays with unit length along the optical axis.
    """

    depth: np.ndarray
    surface: np.ndarray
    instance: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class View:
    """Everything about a picture that does not depend on its lighting; n = H * W pixels, float32, world frame.

    ``surface`` and ``instance`` (H, W) and ``depth`` (H, W; 0 for sky) as in :class:`Geometry`; ``colour`` (3, n)
    linear albedo; ``normals`` (3, n) unit, 0 for sky; ``points`` (3, n) metres; ``to_eye`` (3, n) unit; ``travel``
    (n,) distance from the eye, 0 for sky; ``gloss`` and ``glow`` (n,); ``shiny`` indices of the pixels with gloss;
    ``open`` (n,) share of the ambient light that arrives.
    """

    depth: np.ndarray
    surface: np.ndarray
    instance: np.ndarray
    colour: np.ndarray
    normals: np.ndarray
    points: np.ndarray
    to_eye: np.ndarray
    travel: np.ndarray
    gloss: np.ndarray
    glow: np.ndarray
    shiny: np.ndarray
    open: np.ndarray


@dataclass(frozen=True)
class Annotation:
    """The exact annotations of a picture, which its lighting does not change; arrays are (H, W) or (H, W, 3).

    ``depth`` float32 metres along the optical axis, 0 where nothing is hit (sky).
    ``normals`` float32 unit vectors in the camera frame with the axes of NYUD: right, forward (into the scene), up,
    so that every visible surface has a negative dot product with its viewing ray; the zero vector where depth is 0.
    ``labels`` uint8 class id of ``classes.CLASSES``, ``instances`` uint8 (0 = sky), ``parts`` uint8 index + 1 into
    ``part_names``, 0 where the pixel is no body part; ``surfaces`` int16 primitive index (-1 = sky).
    """

    depth: np.ndarray
    normals: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    parts: np.ndarray
    part_names: tuple[str, ...]
    surfaces: np.ndarray


def camera_rays(camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) float32 world directions through pixel centres, of unit length along the optical axis."""
    height, width = size
    focal = camera.focal(width)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    right, down, forward = camera.axes()
    rays = right[:, None, None] * x[None, None] + down[:, None, None] * y[None, :, None] + forward[:, None, None]
    return rays.astype(np.float32)


def _windows(world: World, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """(P, 4) int rows top, bottom, left, right of the pixels that each primitive can cover; empty if out of view."""
    height, width = size
    local = (world.corners - np.array(camera.position)) @ camera.axes().T
    depth, focal = local[..., 2], camera.focal(width)
    safe = np.maximum(depth, 1e-6)
    x, y = local[..., 0] / safe * focal + width / 2, local[..., 1] / safe * focal + height / 2
    bounds = np.stack([y.min(1) - 1, y.max(1) + 2, x.min(1) - 1, x.max(1) + 2], axis=1)
    near = depth.min(axis=1) < 0.02  # reaches behind the camera: its projection says nothing
    bounds[near] = (0, height, 0, width)
    bounds[depth.max(axis=1) < 0.02] = 0
    bounds[world.endless] = (0, height, 0, width)
    return np.clip(bounds, 0, (height, height, width, width)).astype(np.int64)


def cast(world: World, camera: Camera, size: tuple[int, int]) -> Geometry:
    """Nearest surface of every pixel.

    Each primitive is intersected only with the rays inside its bounding box on the screen, which makes the cost
    proportional to covered pixels rather than to pixels times primitives.
    """
    directions = camera_rays(camera, size)
    depth = np.full(size, np.inf, dtype=np.float32)
    index = np.full(size, -1, dtype=np.int16)
    offsets = np.einsum("pij,pj->pi", world.rotations, np.array(camera.position) - world.centers).astype(np.float32)
    windows = _windows(world, camera, size).tolist()
    for number, (primitive, (top, bottom, left, right)) in enumerate(zip(world.primitives, windows)):
        if top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        t = hit(primitive, tuple(offsets[number]), tuple(directions[(k, *window)] for k in range(3)))
        nearer = t < depth[window]
        np.copyto(depth[window], t, where=nearer)
        np.copyto(index[window], np.int16(number), where=nearer)
    instance = world.owners[index]
    return Geometry(depth, index, instance, directions)


def look(world: World, camera: Camera, size: tuple[int, int]) -> View:
    """Cast a picture of ``size`` = (height, width) and evaluate the surfaces in it; lighting comes later."""
    cast_view = cast(world, camera, size)
    ids = cast_view.surface.ravel()
    depth = np.where(ids >= 0, cast_view.depth.ravel(), np.float32(0))
    rays = cast_view.directions.reshape(3, -1)
    length = np.sqrt((rays * rays).sum(axis=0))
    points = np.array(camera.position, dtype=np.float32)[:, None] + rays * depth
    colour, normals = np.zeros_like(points), np.zeros_like(points)
    gloss, glow = np.zeros_like(depth), np.zeros_like(depth)
    order = np.argsort(ids, kind="stable")
    edges = np.searchsorted(ids[order], np.arange(len(world.primitives) + 1))
    pixel = np.float32(1 / camera.focal(size[1]))
    for number, primitive in enumerate(world.primitives):
        chosen = order[edges[number] : edges[number + 1]]
        if not chosen.size:
            continue
        normal, u, v = surface(primitive, tuple(points[k][chosen] for k in range(3)))
        slant = -sum(normal[k] * rays[k][chosen] for k in range(3)) / length[chosen]
        width = depth[chosen] * pixel / np.maximum(slant, np.float32(0.12))
        albedos = albedo(primitive.material, u, v, width)
        for k in range(3):
            colour[k][chosen], normals[k][chosen] = albedos[:, k], normal[k]
        gloss[chosen] = primitive.material.gloss
        glow[chosen] = primitive.material.glow
    return View(
        depth=depth.reshape(size),
        surface=cast_view.surface,
        instance=cast_view.instance,
        colour=colour,
        normals=normals,
        points=points,
        to_eye=-rays / length,
        travel=length * depth,
        gloss=gloss,
        glow=glow,
        shiny=np.flatnonzero(gloss > 0),
        open=occlusion(world.things, points),
    )


def _soften_edges(colour: np.ndarray, surfaces: np.ndarray) -> np.ndarray:
    """Blend pixels across surface borders (binomial 3x3): cheap anti-aliasing of the silhouettes."""
    edge = np.zeros(surfaces.shape, dtype=bool)
    for a, b in (
        ((slice(1, None),), (slice(None, -1),)),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = surfaces[a] != surfaces[b]
        edge[a] |= differs
        edge[b] |= differs
    padded = np.pad(colour, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 16)
    return np.where(edge[..., None], (colour + 2 * blurred) * np.float32(1 / 3), colour)


def develop(world: World, view: View, lighting: Lighting) -> np.ndarray:
    """The (H, W, 3) uint8 sRGB image of a view under a lighting."""
    lit = shade(world.things, view, lighting)
    lit = _soften_edges(np.ascontiguousarray(lit.T).reshape(*view.surface.shape, 3), view.surface)
    return (np.clip(lit, 0, 1) ** np.float32(1 / 2.2) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def annotate(world: World, camera: Camera, view: View) -> Annotation:
    """The exact annotations of a view."""
    right, down, forward = camera.axes()
    frame = np.stack([rotate(tuple(axis.tolist()), view.normals) for axis in (right, forward, -down)], axis=-1)
    labels = np.array([class_id("sky"), *(class_id(t.class_name) for t in world.things)], dtype=np.uint8)
    parts = [p.part for p in world.primitives]
    names = tuple(sorted({p for p in parts if p}))
    part_ids = np.array([*(names.index(p) + 1 if p else 0 for p in parts), 0], dtype=np.uint8)
    return Annotation(
        depth=view.depth,
        normals=frame.reshape(*view.surface.shape, 3),
        labels=labels[view.instance],
        instances=view.instance,
        parts=part_ids[view.surface],
        part_names=names,
        surfaces=view.surface,
    )


def render(world: World, camera: Camera, lighting: Lighting, size: tuple[int, int]) -> tuple[np.ndarray, Annotation]:
    """Draw one picture of ``size`` = (height, width): its (H, W, 3) uint8 image and its annotations."""
    view = look(world, camera, size)
    return develop(world, view, lighting), annotate(world, camera, view)
