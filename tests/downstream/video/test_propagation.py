"""Label propagation against a loop over every pair of cells, and on videos whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyscene.downstream.video.propagation import (
    hard_labels,
    neighbourhood_tiles,
    propagate_labels,
    propagate_video,
    soft_labels,
)

CPU = torch.device("cpu")


def random_video(frames, height, width, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(frames, height, width, channels, generator=generator), dim=-1)


def distribution(height, width, classes, seed):
    return torch.rand(height, width, classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def slow_frame(query, frames, labels, unrestricted, radius, top_k, temperature):
    """One frame, cell by cell: ``frames`` and ``labels`` are lists, the first ``unrestricted`` count everywhere."""
    height, width, _ = query.shape
    result = torch.zeros(height, width, labels[0].shape[-1], dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            votes = []
            for number, (features, values) in enumerate(zip(frames, labels)):
                for v in range(height):
                    for u in range(width):
                        if number < unrestricted or math.hypot(v - y, u - x) < radius:
                            votes.append((float(query[y, x] @ features[v, u]), values[v, u].double()))
            votes = sorted(votes, key=lambda vote: -vote[0])[:top_k]
            weights = [math.exp(similarity / temperature) for similarity, _ in votes]
            for weight, (_, value) in zip(weights, votes):
                result[y, x] += weight / sum(weights) * value
    return result


@pytest.mark.parametrize(("radius", "top_k"), [(2, 3), (3.5, 10), (1, 1), (100, 7)])
@pytest.mark.parametrize("side", [3, 8])
def test_one_frame_is_the_loop(radius, top_k, side):
    features = random_video(4, 7, 5, 6, seed=1)
    labels = torch.stack([distribution(7, 5, 3, seed) for seed in range(3)])
    tiles = neighbourhood_tiles(7, 5, radius, CPU, side=side)
    found = propagate_labels(
        features[3], (features[0], labels[0]), (features[1:3], labels[1:3]), tiles, top_k=top_k, temperature=0.2
    )
    expected = slow_frame(features[3], list(features[:3]), list(labels), 1, radius, top_k, 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("context", [0, 1, 2, 20])
def test_a_video_is_the_loop(context, pad):
    """Which frames vote when: the first always, then the previous ones, or copies of the first."""
    features = random_video(5, 4, 5, 6, seed=2)
    start = distribution(4, 5, 2, seed=9)
    found = list(propagate_video(features, start, context=context, radius=2, top_k=4, temperature=0.1, pad=pad))
    known = [start]
    for t in range(1, 5):
        previous = [s for s in range(t - context, t) if s > 0 or pad]
        frames = [features[0], *(features[max(s, 0)] for s in previous)]
        labels = [start, *(known[max(s, 0)] for s in previous)]
        known.append(slow_frame(features[t], frames, labels, 1, 2, 4, 0.1).float())
    assert len(found) == 4
    torch.testing.assert_close(torch.stack(found), torch.stack(known[1:]), rtol=1e-4, atol=1e-5)


def test_soft_maps_stay_distributions():
    features = random_video(30, 9, 17, 8, seed=3)
    for labels in propagate_video(features, distribution(9, 17, 4, seed=3), context=5, radius=3):
        assert labels.min() >= 0
        torch.testing.assert_close(labels.sum(dim=-1), torch.ones(9, 17), rtol=0, atol=1e-4)


def test_cells_outside_never_vote():
    """Everything near looks different from the query, everything far away alike: only the near may vote."""
    height, width = 1, 9
    query = torch.zeros(height, width, 2)
    query[..., 0] = 1
    near = torch.zeros(1, height, width, 2)
    near[0, :, :, 0] = 1  # the same everywhere, so distance alone decides
    first = torch.zeros(height, width, 2)
    first[..., 0] = -1  # most unlike
    values = torch.zeros(1, height, width, 2)
    values[0, :, :4, 0], values[0, :, 4:, 1] = 1, 1
    blank = torch.full((height, width, 2), 0.5)
    tiles = neighbourhood_tiles(height, width, 2, CPU)
    found = propagate_labels(query, (first, blank), (near, values), tiles, top_k=9, temperature=0.05)
    expected = torch.tensor([1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])  # cells at a distance of 0 and 1
    torch.testing.assert_close(found[0, :, 0], expected, rtol=0, atol=1e-6)


def ideal_features(ids):
    """Different things have orthogonal features: (H, W) integers -> (H, W, C)."""
    return F.one_hot(ids.long()).float()


@pytest.mark.parametrize("pad", [True, False])
def test_a_moving_rectangle_is_followed_exactly(pad):
    """Every cell of the rectangle has its own feature, and so has the background."""
    height, width, frames = 12, 20, 14
    cells = torch.arange(1, 13).view(3, 4)
    maps = torch.zeros(frames, height, width, dtype=torch.long)
    for t in range(frames):
        top, left = 1 + t // 2, 1 + t
        maps[t, top : top + 3, left : left + 4] = cells
    start = soft_labels((maps[0] > 0).int(), (1,), (height, width))
    features = (ideal_features(m) for m in maps)
    found = list(propagate_video(features, start, context=4, radius=4, top_k=1, temperature=0.05, pad=pad))
    for t, labels in enumerate(found, start=1):
        assert torch.equal(hard_labels(labels, (1,), (height, width)), (maps[t] > 0).to(torch.uint8))


def test_two_objects_of_ideal_features_stay_apart_at_the_defaults():
    height, width, frames = 16, 24, 25
    truth = torch.zeros(frames, height, width, dtype=torch.uint8)
    for t in range(frames):
        truth[t, 2:7, t // 3 : t // 3 + 6] = 4
        truth[t, 9:14, 12 - t // 4 : 18 - t // 4] = 9
    things = truth.long()
    things[things == 4], things[things == 9] = 1, 2
    start = soft_labels(truth[0], (4, 9), (height, width))
    for t, labels in enumerate(propagate_video((ideal_features(m) for m in things), start), start=1):
        assert torch.equal(hard_labels(labels, (4, 9), (height, width)), truth[t])


def test_tiles_cover_every_cell_once_and_every_neighbour():
    height, width, radius = 11, 13, 3.0
    count = torch.zeros(height, width)
    for tile in neighbourhood_tiles(height, width, radius, CPU, side=4):
        count[tile.query] += 1
        inside = (~tile.outside).sum(dim=1)
        queries = [(y, x) for y in range(height)[tile.query[0]] for x in range(width)[tile.query[1]]]
        for (y, x), found in zip(queries, inside):
            near = [(v, u) for v in range(height) for u in range(width) if math.hypot(v - y, u - x) < radius]
            assert found == len(near)
    assert (count == 1).all()


def test_soft_labels_are_bilinear_samples():
    """Factor 4: a cell is the mean of the four pixels around its centre."""
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, :2] = 5
    mask[2:6, 4:] = 7
    soft = soft_labels(mask, (5, 7), (2, 2))
    expected = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]])
    torch.testing.assert_close(soft, expected)


def test_hard_labels_give_back_the_labels_of_the_file():
    soft = F.one_hot(torch.tensor([[0, 1], [2, 1]]), 3).float()
    expected = np.kron([[0, 3], [200, 3]], np.ones((4, 4)))
    assert np.array_equal(hard_labels(soft, (3, 200), (8, 8)).numpy(), expected)
