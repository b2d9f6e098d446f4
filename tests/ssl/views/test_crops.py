import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from polyscene.runtime.errors import UserError
from polyscene.ssl.views.crops import (
    PAIR_TRIES,
    TRIES,
    CropGroup,
    capped_pairs,
    central_boxes,
    constrained_crops,
    inside_crops,
    intersection,
    iou,
    mean_crop_iou,
    random_resized_crops,
)

LARGE = CropGroup(2, 160, (0.2, 1.0))
SMALL = CropGroup(4, 96, (0.05, 0.14))


def sizes_of(height, width, count):
    return np.tile([[height, width]], (count, 1))


def reference_try(numbers, height, width, group):
    """One try as torchvision writes it, in plain Python: (box, target area) or None."""
    area = height * width * (group.scale[0] + (group.scale[1] - group.scale[0]) * numbers[0])
    low, high = math.log(group.ratio[0]), math.log(group.ratio[1])
    aspect = math.exp(low + (high - low) * numbers[1])
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < w <= width and 0 < h <= height):
        return None
    return (int(numbers[2] * (height - h + 1)), int(numbers[3] * (width - w + 1)), h, w), area


def shared_area(a, b):
    rows = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    columns = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(rows, 0) * max(columns, 0)


def torchvision_fallback(height, width, group):
    """torchvision's central crop, reached by an area that never fits."""
    image = torch.empty(3, height, width)
    return RandomResizedCrop.get_params(image, [9.0, 9.0], list(group.ratio))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 900), (31, 33)])
@pytest.mark.parametrize("group", [LARGE, SMALL, CropGroup(1, 8, (0.08, 0.5), (0.5, 3.0))])
def test_boxes_follow_torchvisions_distribution(size, group):
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    draws = 1500
    theirs = np.array([RandomResizedCrop.get_params(image, list(group.scale), list(group.ratio)) for _ in range(draws)])
    numbers = np.random.default_rng(0).random((draws, 1, TRIES, 4))
    ours = random_resized_crops(numbers, sizes_of(*size, draws), group)[:, 0]
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(480, 640), (20, 90), (5, 3)])
def test_boxes_equal_a_plain_loop(size):
    numbers = np.random.default_rng(1).random((300, 2, TRIES, 4))
    boxes = random_resized_crops(numbers, sizes_of(*size, 300), LARGE)
    for i, j in np.ndindex(300, 2):
        tries = (reference_try(u, *size, LARGE) for u in numbers[i, j])
        expected = next((box for attempt in tries if attempt for box in attempt[:1]), None)
        assert tuple(boxes[i, j]) == (expected or torchvision_fallback(*size, LARGE))


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_central_box_equals_torchvisions(height, width):
    expected = torchvision_fallback(height, width, LARGE)
    assert tuple(central_boxes(np.array([[height, width]]), LARGE.ratio)[0]) == expected


@given(
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.floats(0.05, 1),
    st.floats(1, 20),
    st.sampled_from(["free", "overlap", "inside"]),
    st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_boxes_lie_in_images_of_any_shape(height, width, scale_a, scale_b, low, high, kind, seed):
    group = CropGroup(3, 7, (min(scale_a, scale_b), max(scale_a, scale_b)), (low, high))
    generator = np.random.default_rng(seed)
    sizes = np.array([[height, width], [width, height]])
    anchors = random_resized_crops(generator.random((2, 1, TRIES, 4)), sizes, LARGE)[:, 0]
    numbers = generator.random((2, 3, 2 * TRIES, 4))
    if kind == "free":
        boxes = random_resized_crops(numbers, sizes, group)
    elif kind == "overlap":
        boxes, _ = constrained_crops(numbers, sizes, anchors, group, 0.1)
    else:
        boxes, _ = inside_crops(numbers, sizes, anchors, group)
        assert (boxes[..., :2] >= anchors[:, None, :2]).all()
        assert (boxes[..., :2] + boxes[..., 2:] <= (anchors[:, :2] + anchors[:, 2:])[:, None]).all()
    assert boxes.dtype == np.int64
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] >= 1).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= sizes[:, None]).all()


@pytest.mark.parametrize("group", [LARGE, SMALL])
def test_areas_and_aspects_keep_their_range(group):
    sizes = sizes_of(480, 640, 2000)
    boxes = random_resized_crops(np.random.default_rng(2).random((2000, 3, TRIES, 4)), sizes, group)
    share = boxes[..., 2] * boxes[..., 3] / (480 * 640)
    aspect = boxes[..., 3] / boxes[..., 2]
    assert share.min() > group.scale[0] * 0.99
    assert share.max() < group.scale[1] * 1.01
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35


@pytest.mark.parametrize("min_overlap", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(480, 640), (60, 600)])
def test_constrained_crops_equal_a_plain_loop(min_overlap, size):
    generator = np.random.default_rng(3)
    sizes = sizes_of(*size, 200)
    anchors = random_resized_crops(generator.random((200, 1, TRIES, 4)), sizes, LARGE)[:, 0]
    numbers = generator.random((200, 4, 2 * TRIES, 4))
    boxes, fallback = constrained_crops(numbers, sizes, anchors, SMALL, min_overlap)
    for i, j in np.ndindex(200, 4):
        tries = [reference_try(u, *size, SMALL) for u in numbers[i, j]]
        met = [t[0] for t in tries[:TRIES] if t and shared_area(t[0], anchors[i]) >= min_overlap * t[1]]
        free = [t[0] for t in tries[TRIES:] if t]
        expected = (met or free or [torchvision_fallback(*size, SMALL)])[0]
        assert tuple(boxes[i, j]) == expected
        assert fallback[i, j] == (not met)


def test_constrained_crops_overlap_the_anchor_or_are_counted():
    generator = np.random.default_rng(4)
    sizes = sizes_of(480, 640, 4000)
    anchors = random_resized_crops(generator.random((4000, 1, TRIES, 4)), sizes, LARGE)[:, 0]
    boxes, fallback = constrained_crops(generator.random((4000, 4, 2 * TRIES, 4)), sizes, anchors, SMALL, 0.1)
    share = intersection(boxes, anchors[:, None]) / (boxes[..., 2] * boxes[..., 3])
    assert share[~fallback].min() > 0.099
    assert fallback.mean() < 0.001
    # The constraint matters: without it many crops miss the anchor.
    free = random_resized_crops(generator.random((4000, 4, TRIES, 4)), sizes, SMALL)
    assert (intersection(free, anchors[:, None]) < 0.1 * free[..., 2] * free[..., 3]).mean() > 0.1


def test_inside_crops_keep_their_area_and_fill_the_anchor_evenly():
    generator = np.random.default_rng(5)
    sizes = sizes_of(480, 640, 3000)
    anchors = random_resized_crops(generator.random((3000, 1, TRIES, 4)), sizes, LARGE)[:, 0]
    boxes, fallback = inside_crops(generator.random((3000, 2, TRIES, 4)), sizes, anchors, SMALL)
    assert fallback.mean() < 0.001
    share = boxes[..., 2] * boxes[..., 3] / (480 * 640)
    assert share[~fallback].min() > 0.0495
    assert share.max() < 0.1415
    room = anchors[:, None, 2:] - boxes[..., 2:]
    place = ((boxes[..., :2] - anchors[:, None, :2]) / room.clip(1))[room > 20]
    assert abs(place.mean() - 0.5) < 0.02


def test_inside_crops_are_cut_to_an_anchor_that_is_too_small():
    sizes = sizes_of(100, 100, 50)
    anchors = np.tile([[10, 20, 3, 5]], (50, 1))
    boxes, fallback = inside_crops(np.random.default_rng(0).random((50, 4, TRIES, 4)), sizes, anchors, SMALL)
    assert fallback.all()
    assert (boxes == anchors[:, None]).all()


def test_pairs_meet_the_cap_or_are_the_best_seen():
    generator = np.random.default_rng(6)
    numbers = generator.random((PAIR_TRIES, 300, 2, TRIES, 4))
    sizes = sizes_of(480, 640, 300)
    for cap in (0.0, 0.15, 0.5, 1.0):
        boxes, over = capped_pairs(lambda attempt, rows: numbers[attempt][rows], sizes, LARGE, cap)
        overlap = iou(boxes[:, 0], boxes[:, 1])
        assert (overlap[~over] <= cap).all()
        assert (overlap[over] > cap).all()
        every = np.stack([random_resized_crops(u, sizes, LARGE) for u in numbers])
        lowest = iou(every[:, :, 0], every[:, :, 1]).min(axis=0)
        assert np.array_equal(over, lowest > cap)
        assert np.array_equal(overlap[over], lowest[over])
    assert not over.any()


@given(st.lists(st.integers(0, 12), min_size=4, max_size=4), st.lists(st.integers(0, 12), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_intersection_and_iou_count_pixels(a, b):
    a, b = np.array([a, b]) + np.array([0, 0, 1, 1])
    masks = np.zeros((2, 30, 30), dtype=bool)
    for mask, box in zip(masks, (a, b)):
        mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    assert intersection(a, b) == (masks[0] & masks[1]).sum()
    assert iou(a, b) == (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_mean_crop_iou_looks_at_query_and_anchor():
    boxes = torch.tensor([[[0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 1, 1]], [[0, 0, 2, 2], [5, 5, 2, 2], [0, 0, 2, 2]]])
    assert mean_crop_iou(boxes) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, "count=-1"),
        ({"size": 0}, "size=0"),
        ({"scale": (0.5, 0.2)}, r"scale=\[0.5, 0.2\]"),
        ({"scale": (0.0, 0.2)}, "scale"),
        ({"scale": (0.1, 1.2)}, "scale"),
        ({"scale": (0.1,)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
    ],
)
def test_impossible_groups_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        CropGroup(**{"count": 2, "size": 8, "scale": (0.2, 1.0), **change})
