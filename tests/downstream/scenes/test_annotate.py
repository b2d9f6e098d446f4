"""Boundaries and saliency derived from labels."""

import numpy as np
import pytest
from scipy import ndimage

from polyscene.downstream.scenes.annotate import boundaries, object_boxes, saliency
from polyscene.downstream.scenes.classes import class_id


def random_regions(seed):
    """Smooth random label maps: the argmax of blurred noise."""
    noise = np.random.default_rng(seed).normal(size=(5, 60, 80))
    return ndimage.gaussian_filter(noise, (0, 5, 5)).argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_every_boundary_pixel_touches_a_change_and_no_change_is_far_from_a_boundary(seed):
    regions = random_regions(seed)
    edge = boundaries(regions)
    changed = np.zeros(regions.shape, dtype=bool)
    changed[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    changed[:-1] |= regions[:-1] != regions[1:]
    assert not (edge & ~changed).any()
    near = ndimage.binary_dilation(edge, np.ones((3, 3), dtype=bool))
    assert not (changed & ~near).any()


@pytest.mark.parametrize("seed", range(6))
def test_thinning_keeps_the_connected_components(seed):
    regions = random_regions(seed)
    changed = np.zeros(regions.shape, dtype=bool)
    changed[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    changed[:-1] |= regions[:-1] != regions[1:]
    eight = np.ones((3, 3), dtype=bool)
    assert ndimage.label(boundaries(regions), eight)[1] == ndimage.label(changed, eight)[1]


def test_a_diagonal_border_is_one_pixel_wide():
    y, x = np.mgrid[:20, :20]
    edge = boundaries((x > y).astype(np.uint8))
    assert (edge[1:].sum(axis=1) <= 1).all()  # the curve's first pixel, on row 0, is an end and stays
    assert edge.sum() >= 18


def test_uniform_image_has_no_boundary():
    assert not boundaries(np.ones((8, 9), np.uint8)).any()


def painted(*objects):
    """Floor with rectangles: (class name, rows, columns) per object, instance ids from 2."""
    instances, labels = np.ones((100, 100), np.uint8), np.full((100, 100), class_id("floor"), np.uint8)
    for number, (name, rows, columns) in enumerate(objects, start=2):
        instances[rows, columns], labels[rows, columns] = number, class_id(name)
    return instances, labels


def test_the_large_central_object_is_salient_and_the_background_never():
    instances, labels = painted(
        ("sofa", slice(40, 70), slice(35, 75)),
        ("ball", slice(0, 8), slice(0, 9)),
        ("rug", slice(75, 100), slice(0, 100)),
    )
    mask = saliency(instances, labels)
    np.testing.assert_array_equal(mask, instances == 2)


def test_two_objects_of_about_equal_score_are_both_salient():
    instances, labels = painted(
        ("chair", slice(40, 60), slice(20, 40)),
        ("lamp", slice(40, 60), slice(60, 80)),
        ("cat", slice(0, 1), slice(0, 1)),
    )
    np.testing.assert_array_equal(saliency(instances, labels), (instances == 2) | (instances == 3))


def test_no_salient_object_gives_an_empty_mask():
    instances, labels = painted(("rug", slice(40, 90), slice(40, 90)), ("cat", slice(0, 2), slice(0, 2)))
    assert not saliency(instances, labels).any()


def test_object_boxes_are_tight_and_skip_small_and_unlisted_things():
    instances, labels = painted(
        ("sofa", slice(40, 70), slice(35, 75)), ("cat", slice(0, 3), slice(0, 3)), ("bed", slice(80, 99), slice(0, 50))
    )
    assert object_boxes(instances, labels) == [(18, 2, (35, 40, 74, 69), 1200)]
