"""J and F against hand-computed values and a slow implementation written from the definition."""

import itertools
import math

import numpy as np
import pytest
from skimage.morphology import disk

from polyscene.downstream.video.scores import (
    boundary_accuracy,
    boundary_map,
    region_similarity,
    score_video,
    statistics,
)


def blobs(rng, height, width):
    """A random bool mask of a few discs, some of them cut by the picture's edge."""
    mask = np.zeros((height, width), dtype=bool)
    ys, xs = np.mgrid[:height, :width]
    for _ in range(rng.integers(1, 4)):
        y, x, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, height / 3)
        mask |= (ys - y) ** 2 + (xs - x) ** 2 < r * r
    return mask


def slow_boundary(mask):
    """Pixel by pixel: does it differ from its neighbour to the right, below or right below?"""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        if y == height - 1 and x == width - 1:
            continue
        if y == height - 1:
            neighbours = [(y, x + 1)]
        elif x == width - 1:
            neighbours = [(y + 1, x)]
        else:
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        result[y, x] = any(mask[n] != mask[y, x] for n in neighbours)
    return result


def slow_accuracy(predicted, truth):
    """Every pair of boundary pixels is compared, with the disk of the official tool as the neighbourhood."""
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    reach = {tuple(offset) for offset in np.argwhere(disk(radius)) - radius}
    found = [tuple(p) for p in np.argwhere(slow_boundary(predicted))]
    wanted = [tuple(p) for p in np.argwhere(slow_boundary(truth))]
    if not found and not wanted:
        return 1.0
    if not found or not wanted:
        return 0.0

    def share(points, others):
        return sum(any((p[0] - o[0], p[1] - o[1]) in reach for o in others) for p in points) / len(points)

    precision, recall = share(found, wanted), share(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def square(top, left, side, size=(20, 30)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity_by_hand():
    assert region_similarity(square(2, 2, 4), square(2, 4, 4)) == 8 / 24
    assert region_similarity(square(2, 2, 4), square(2, 2, 4)) == 1
    assert region_similarity(square(2, 2, 4), square(10, 10, 4)) == 0


def test_empty_masks():
    empty = square(0, 0, 0)
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(empty, square(2, 2, 4)), boundary_accuracy(empty, square(2, 2, 4))) == (0, 0)
    assert (region_similarity(square(2, 2, 4), empty), boundary_accuracy(square(2, 2, 4), empty)) == (0, 0)


def test_boundary_of_a_pixel_by_hand():
    """It lies half a pixel towards the origin: the pixel and its neighbours above, left and above left."""
    assert np.argwhere(boundary_map(square(5, 7, 1))).tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]


def test_a_full_mask_has_no_boundary():
    assert not boundary_map(np.ones((6, 9), dtype=bool)).any()


@pytest.mark.parametrize("seed", range(6))
def test_boundary_map_is_the_slow_one(seed):
    mask = blobs(np.random.default_rng(seed), 24, 31)
    assert np.array_equal(boundary_map(mask), slow_boundary(mask))


def test_a_shift_within_the_tolerance_costs_nothing():
    """20 x 30 pixels: diagonal 36.06, tolerance ceil(0.288) = 1 pixel."""
    assert boundary_accuracy(square(5, 5, 8), square(6, 5, 8)) == 1
    assert boundary_accuracy(square(5, 5, 8), square(5, 5, 8)) == 1
    assert boundary_accuracy(square(2, 2, 3), square(12, 20, 3)) == 0


def test_boundary_accuracy_by_hand():
    """Squares of side 4 and 8 at (5, 5): boundary rings of side 5 and 9 that share two sides, tolerance 1 pixel.

    Shared: 9 pixels of row 4 and column 4. Of the inner ring's others, (5, 8) and (8, 5) touch the outer ring, so
    precision is 11/16. Of the outer ring's others, (4, 9) and (9, 4) touch the inner ring, so recall is 11/32.
    """
    inner, outer = square(5, 5, 4), square(5, 5, 8)
    assert np.count_nonzero(boundary_map(inner)) == 16
    assert np.count_nonzero(boundary_map(outer)) == 32
    precision, recall = 11 / 16, 11 / 32
    assert boundary_accuracy(inner, outer) == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("size", [(24, 31), (90, 120), (100, 160)])  # tolerances of 1 and 2 pixels
@pytest.mark.parametrize("seed", range(3))
def test_boundary_accuracy_is_the_slow_one(size, seed):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, *size)
    shifted = np.roll(truth, (1, 2), axis=(0, 1))
    for predicted in (shifted, shifted | square(3, 3, 5, size), blobs(rng, *size)):
        expected = slow_accuracy(predicted, truth)
        assert boundary_accuracy(predicted, truth) == pytest.approx(expected, abs=1e-12)
    assert 0 < slow_accuracy(shifted, truth) <= 1


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        (1, [0], [0]),
        (2, [0], [1]),  # edges 1, 1.25, 1.5, 1.75, 2 -> 1, 1, 2, 2, 2
        (4, [0, 1], [2, 3]),  # 1, 1.75, 2.5, 3.25, 4 -> 1, 2, 3, 3, 4
        (5, [0, 1], [3, 4]),
        (7, [0, 1, 2], [5, 6]),  # 1, 2.5, 4, 5.5, 7 -> halves go up: 1, 3, 4, 6, 7
        (8, [0, 1, 2], [5, 6, 7]),  # 1, 2.75, 4.5, 6.25, 8 -> 1, 3, 5, 6, 8
        (78, list(range(20)), list(range(58, 78))),  # 1, 20.25, 39.5, 58.75, 78
        (300, list(range(76)), list(range(224, 300))),  # 1, 75.75, 150.5, 225.25, 300
    ],
)
def test_decay_bins(count, first, last):
    values = np.random.default_rng(count).uniform(size=count)
    assert statistics(values).decay == pytest.approx(values[first].mean() - values[last].mean(), abs=1e-12)


def test_statistics_by_hand():
    mean, recall, decay = statistics([0.9, 0.5, 0.7, 0.1])
    assert mean == pytest.approx(0.55)
    assert recall == 0.5  # 0.5 itself does not count
    assert decay == pytest.approx((0.9 + 0.5) / 2 - (0.7 + 0.1) / 2)


def test_first_and_last_frame_are_not_scored():
    truth = [np.uint8(square(4, 4, 6)) * 3 + np.uint8(square(12, 20, 5)) * 7 for _ in range(5)]
    predicted = [t.copy() for t in truth]
    predicted[0][:] = 0
    predicted[4][:] = 0
    predicted[2][truth[2] == 7] = 0
    scores = score_video(predicted, truth, (3, 7))
    assert scores[3] == {
        "jf_mean": 1, "j_mean": 1, "j_recall": 1, "j_decay": 0, "f_mean": 1, "f_recall": 1, "f_decay": 0,
    }  # fmt: skip
    assert scores[7]["j_mean"] == scores[7]["f_mean"] == scores[7]["jf_mean"] == pytest.approx(2 / 3)
    assert scores[7]["j_recall"] == pytest.approx(2 / 3)
