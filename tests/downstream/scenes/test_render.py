"""Exactness of the ray caster: depths, normals and labels against closed forms and against each other."""

from dataclasses import replace

import numpy as np
import pytest

from polyscene.downstream.scenes.build import build_world, room_camera, room_lighting
from polyscene.downstream.scenes.classes import CLASSES, class_id, lookup_table
from polyscene.downstream.scenes.geometry import Thing, box, cylinder, ellipsoid, intersect, limb, place, plane
from polyscene.downstream.scenes.materials import Material
from polyscene.downstream.scenes.render import Camera, World, camera_rays, cast, render

GREY = Material("plain", (0.5, 0.5, 0.5))
SIZE = (48, 64)


def world_of(*primitives):
    return World("room", tuple(Thing("box", (p,)) for p in primitives))


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["room0", "room1", "street2"])
def scene(request):
    world, _ = build_world(3, request.param)
    camera = room_camera(3, request.param, 0)
    image, truth = render(world, camera, room_lighting(3, request.param, 0), (96, 128))
    return world, camera, image, truth


def points_of(camera, truth):
    """World points of all pixels, re-projected in float64 from the depth map alone."""
    height, width = truth.depth.shape
    focal = width / 2 / np.tan(camera.fov / 2)
    y, x = np.mgrid[:height, :width]
    local = np.stack([(x + 0.5 - width / 2) / focal, (y + 0.5 - height / 2) / focal, np.ones((height, width))], -1)
    return np.array(camera.position) + (local * truth.depth[..., None].astype(np.float64)) @ camera.axes()


def world_normals(camera, truth):
    """Normals from the stored (right, forward, up) frame back to the world frame."""
    right, down, forward = camera.axes()
    return truth.normals.astype(np.float64) @ np.stack([right, forward, -down])


def test_depth_of_a_frontal_wall_is_its_distance_everywhere():
    # z-depth, not distance along the ray: a wall at right angles to the optical axis has one depth.
    camera = Camera((0, 0, 1), (0, 5, 1), 1.2)
    view = cast(world_of(plane((0, 3.5, 0), (0, -1, 0), GREY)), camera, SIZE)
    np.testing.assert_allclose(view.depth, 3.5, rtol=1e-6)


def test_depth_of_the_floor_follows_the_row():
    camera = Camera((0, 0, 1.5), (0, 5, 1.5), 1.2)
    view = cast(world_of(plane((0, 0, 0), (0, 0, 1), GREY)), camera, SIZE)
    below = np.arange(SIZE[0]) + 0.5 - SIZE[0] / 2
    for row in range(SIZE[0]):
        if below[row] > 0:
            np.testing.assert_allclose(view.depth[row], 1.5 * camera.focal(SIZE[1]) / below[row], rtol=1e-5)
        else:
            assert np.isinf(view.depth[row]).all()


def test_points_of_a_sphere_lie_on_it_and_the_silhouette_is_the_tangent_cone():
    center, radius = np.array([0.4, 6.0, 1.3]), 0.8
    camera = Camera((0, 0, 1), (0, 6, 1.2), 1.0)
    view = cast(world_of(ellipsoid(*center, (radius,) * 3, GREY)), camera, (96, 128))
    rays = camera_rays(camera, (96, 128)).astype(np.float64)
    hit = view.surface == 0
    points = np.array(camera.position)[:, None] + rays[:, hit] * view.depth[hit]
    np.testing.assert_allclose(np.linalg.norm(points - center[:, None], axis=0), radius, rtol=1e-4)
    toward = center - np.array(camera.position)
    cosine = np.tensordot(toward, rays, 1) / np.linalg.norm(rays, axis=0) / np.linalg.norm(toward)
    angle, limit = np.arccos(np.clip(cosine, -1, 1)), np.arcsin(radius / np.linalg.norm(toward))
    clear = np.abs(angle - limit) > 1e-4
    assert (hit == (angle < limit))[clear].all()


@pytest.mark.parametrize(
    "primitive",
    [
        box(0.2, 0.1, -0.3, (0.8, 1.1, 0.6), GREY),
        place(Thing("box", (box(0.2, 0.1, -0.3, (0.8, 1.1, 0.6), GREY),)), (0.1, 0.2, 0.0), 0.7).primitives[0],
        ellipsoid(0.1, -0.1, 0.2, (0.7, 0.4, 0.5), GREY),
        cylinder(0, 0.1, -0.5, 0.5, 0.9, GREY),
        cylinder(0, 0.1, -0.5, 0.5, 0.9, GREY, taper=0.3),
        cylinder(0, 0.1, -0.5, 0.3, 0.9, GREY, taper=2.0),
        limb(np.array([-0.4, 0.1, -0.3]), np.array([0.5, 0.3, 0.4]), 0.3, GREY, taper=0.6),
    ],
    ids=["box", "turned box", "ellipsoid", "cylinder", "frustum", "flared", "limb"],
)
def test_first_hit_agrees_with_marching_through_the_solid(primitive):
    # Oracle: march along each ray in small steps and ask whether the point is inside, by the solid's definition.
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 400))
    start *= 3 / np.linalg.norm(start, axis=0)
    step = rng.uniform(-0.6, 0.6, size=(3, 400)) - start
    got = intersect(primitive, tuple(start.astype(np.float32)), tuple(step.astype(np.float32)))
    times = np.linspace(0, 2, 4001)
    rows, half = np.array(primitive.rotation), np.array(primitive.half)[:, None, None]
    points = start[:, :, None] + step[:, :, None] * times - np.array(primitive.center)[:, None, None]
    unit = np.einsum("ij,jnt->int", rows, points) / half
    if primitive.kind == "box":
        inside = (np.abs(unit) <= 1).all(axis=0)
    elif primitive.kind == "ellipsoid":
        inside = (unit**2).sum(axis=0) <= 1
    else:
        radius = 1 + (primitive.taper - 1) * (unit[2] + 1) / 2
        inside = (np.abs(unit[2]) <= 1) & (np.hypot(unit[0], unit[1]) <= radius)
    expected = np.where(inside.any(axis=1), times[inside.argmax(axis=1)], np.inf)
    grazing = np.isfinite(got) != np.isfinite(expected)
    assert grazing.mean() < 0.01  # the march steps over slivers
    both = np.isfinite(got) & np.isfinite(expected)
    assert both.sum() > 50
    close = np.abs(got[both] - expected[both]) < 2e-3
    assert close.mean() > 0.99


def test_windows_on_the_screen_hide_nothing(scene):
    # The caster intersects each primitive only inside its projected box; brute force over all rays must agree.
    world, camera, _, _ = scene
    view = cast(world, camera, (36, 48))
    origin = tuple(np.float32(x) for x in camera.position)
    depths = np.stack([intersect(p, origin, tuple(view.directions)) for p in world.primitives])
    np.testing.assert_allclose(view.depth, depths.min(axis=0), rtol=1e-3)
    np.testing.assert_allclose(view.depth, np.take_along_axis(depths, view.surface.clip(0)[None], 0)[0], rtol=1e-3)


def test_reprojected_floor_pixels_lie_on_the_floor(scene):
    world, camera, _, truth = scene
    kind = "floor" if world.kind == "room" else "grass"
    mask = truth.labels == class_id(kind)
    heights = points_of(camera, truth)[mask][:, 2]
    assert np.abs(heights).max(initial=0) < 2e-3 * max(1.0, truth.depth[mask].max(initial=0))


def test_room_points_are_inside_the_room():
    world, size = build_world(3, 0)
    camera = room_camera(3, 0, 0)
    _, truth = render(world, camera, room_lighting(3, 0, 0), SIZE)
    points = points_of(camera, truth)
    assert (truth.depth > 0).all()
    assert (np.abs(points[..., :2]) <= np.array(size[:2]) / 2 + 1e-3).all()
    assert (points[..., 2] >= -1e-3).all()
    assert (points[..., 2] <= size[2] + 1e-3).all()


def test_normals_are_unit_and_face_the_camera(scene):
    _, camera, _, truth = scene
    seen = truth.depth > 0
    length = np.linalg.norm(truth.normals, axis=-1)
    np.testing.assert_allclose(length[seen], 1, atol=1e-4)
    assert (length[~seen] == 0).all()
    height, width = seen.shape
    focal = camera.focal(width)
    y, x = np.mgrid[:height, :width]
    # Viewing rays in the frame of the normals: right, forward, up.
    rays = np.stack([(x + 0.5 - width / 2) / focal, np.ones((height, width)), -(y + 0.5 - height / 2) / focal], -1)
    cosine = (rays * truth.normals).sum(-1) / np.linalg.norm(rays, axis=-1)
    assert (cosine[seen] < 1e-2).all()


def test_floor_normals_point_up_in_the_world_and_ceiling_normals_down(scene):
    world, camera, _, truth = scene
    normals = world_normals(camera, truth)
    up = class_id("floor" if world.kind == "room" else "grass")
    np.testing.assert_allclose(normals[truth.labels == up] - (0, 0, 1), 0, atol=1e-5)
    if world.kind == "room":
        np.testing.assert_allclose(normals[truth.labels == class_id("ceiling")] - (0, 0, -1), 0, atol=1e-5)


def test_normals_agree_with_finite_differences_of_the_points(scene):
    _, camera, _, truth = scene
    points = points_of(camera, truth)
    across, along = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    estimate = np.cross(along, across)
    estimate /= np.linalg.norm(estimate, axis=-1, keepdims=True) + 1e-12
    exact = world_normals(camera, truth)
    same = np.ones(truth.depth.shape, dtype=bool)[1:-1, 1:-1]
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            shifted = (slice(dy, dy + same.shape[0]), slice(dx, dx + same.shape[1]))
            same &= truth.surfaces[shifted] == truth.surfaces[1:-1, 1:-1]
            # Away from creases and strong curvature, where differences over two pixels say nothing.
            same &= (exact[shifted] * exact[1:-1, 1:-1]).sum(-1) > 0.995
    same &= truth.depth[1:-1, 1:-1] > 0
    assert same.mean() > 0.3
    angle = np.degrees(np.arccos(np.clip((estimate * exact[1:-1, 1:-1]).sum(-1), -1, 1)))[same]
    assert np.median(angle) < 0.2
    assert np.percentile(angle, 99) < 4


def test_instances_have_one_class_and_parts_belong_to_persons(scene):
    _, _, _, truth = scene
    for instance in np.unique(truth.instances):
        assert len(np.unique(truth.labels[truth.instances == instance])) == 1
    assert (truth.labels[truth.parts > 0] == class_id("person")).all()
    assert (truth.parts[truth.labels == class_id("person")] > 0).all()


def test_lighting_changes_the_picture_but_no_annotation():
    world, _ = build_world(3, 1)
    camera = room_camera(3, 1, 0)
    first, truth = render(world, camera, room_lighting(3, 1, 0), SIZE)
    second, other = render(world, camera, room_lighting(3, 1, 1), SIZE)
    assert np.abs(first.astype(int) - second).mean() > 4
    for name in ("depth", "normals", "labels", "instances"):
        np.testing.assert_array_equal(getattr(truth, name), getattr(other, name))


def test_a_sphere_between_lamp_and_floor_casts_a_shadow():
    from polyscene.downstream.scenes.lighting import Lamp, Lighting

    lamp = Lamp((0.0, 4.0, 3.0), (1.0, 1.0, 1.0), 0.05, 3.0)
    light = Lighting((lamp,), (0.1,) * 3, (0.1,) * 3, (1.0,) * 3)
    floor = Thing("floor", (plane((0, 0, 0), (0, 0, 1), replace(GREY, grain=0.0)),))
    ball = Thing("ball", (ellipsoid(0, 4, 1.5, (0.4, 0.4, 0.4), GREY),))
    camera = Camera((0, 0, 2.0), (0, 4, 0.3), 1.1)
    with_ball, truth = render(World("room", (floor, ball)), camera, light, (96, 128))
    without, _ = render(World("room", (floor,)), camera, light, (96, 128))
    points = points_of(camera, truth)
    away = np.hypot(points[..., 0], points[..., 1] - 4)
    on_floor = truth.labels == class_id("floor")
    core = on_floor & (away < 0.6)  # the umbra's radius is 0.8 (by similar triangles)
    clear = on_floor & (away > 1.2) & (away < 2)
    assert core.sum() > 20
    assert with_ball[core].mean() < 0.5 * without[core].mean()
    np.testing.assert_array_equal(with_ball[clear], without[clear])


@pytest.mark.parametrize("room", range(6))
def test_cameras_stand_clear_of_everything(room):
    world, _ = build_world(8, room)
    for number in range(3):
        eye = np.array(room_camera(8, room, number).position)
        for primitive in world.primitives:
            if primitive.kind != "plane":
                low, high = primitive.corners.min(axis=0), primitive.corners.max(axis=0)
                turned = np.abs(np.array(primitive.rotation)).max(axis=1).min() < 0.999
                assert turned or not ((low - 0.1 < eye) & (eye < high + 0.1)).all()


def test_class_table_is_consistent():
    names = [entry.name for entry in CLASSES]
    assert len(set(names)) == len(names) <= 40
    assert [class_id(name) for name in names] == list(range(1, len(names) + 1))
    assert lookup_table("nyu").max() <= 40
    assert lookup_table("voc").max() <= 20
    with pytest.raises(KeyError):
        class_id("dragon")
