"""Descriptors, label counts and majority labels of regions."""

import numpy as np
import pytest

from polyscene.downstream.segments.regions import (
    NO_REGION,
    cluster_regions,
    enlarge,
    label_histograms,
    majority_labels,
    salient_region,
)

VOID = 2
EAST, NORTH = np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)


def halves():
    """Cells (2, 4, 2): the left half looks east, the right half north."""
    cells = np.zeros((2, 4, 2), dtype=np.float32)
    cells[:, :2], cells[:, 2:] = EAST, NORTH
    return cells


def test_segments_of_two_halves():
    labels = np.zeros((4, 8), dtype=np.int64)
    labels[:, 4:] = 1
    labels[0, :] = VOID
    found = cluster_regions(halves(), labels, None, classes=2, clusters=2, seed=0)
    assert found.map.tolist() == [[0, 0, 1, 1]] * 2
    assert np.allclose(found.embeddings, [EAST, NORTH])
    assert found.histograms.tolist() == [[12, 0, 4], [0, 12, 4]]
    assert not found.rest.any()


def test_descriptor_is_the_renormalised_mean():
    generator = np.random.default_rng(0)
    cells = generator.normal(size=(6, 6, 5)).astype(np.float32)
    cells /= np.linalg.norm(cells, axis=2, keepdims=True)
    labels = np.zeros((12, 12), dtype=np.int64)
    found = cluster_regions(cells, labels, None, classes=2, clusters=4, seed=0)
    for number, embedding in enumerate(found.embeddings):
        mean = cells[found.map == number].mean(axis=0)
        assert np.allclose(embedding, mean / np.linalg.norm(mean), atol=1e-6)
    assert found.histograms.sum() == 144


def test_salient_mask_is_one_region():
    salient = np.zeros((4, 8), dtype=bool)
    salient[:, :5] = True  # 16 pixels look east, 4 north
    labels = np.zeros((4, 8), dtype=np.int64)
    labels[:2, :3], labels[3, 7] = 1, VOID
    found = salient_region(halves(), labels, salient, classes=2)
    assert np.allclose(found.embeddings, [np.array([16, 4]) / np.hypot(16, 4)])
    assert found.histograms.tolist() == [[14, 6, 0]]
    assert found.rest.tolist() == [11, 0, 1]
    assert found.map.tolist() == [[0, 0, NO_REGION, NO_REGION]] * 2


def test_nothing_salient_is_no_region():
    found = salient_region(halves(), np.ones((4, 8), dtype=np.int64), np.zeros((4, 8), dtype=bool), classes=2)
    assert found.embeddings.shape == (0, 2)
    assert found.histograms.shape == (0, 3)
    assert found.rest.tolist() == [0, 32, 0]


@pytest.mark.parametrize(
    ("counts", "label", "salient_label"),
    [
        ([5, 3, 1, 0], 0, 1),
        ([5, 2, 2, 6], -1, 1),  # void is the majority; without it and background, a tie goes to the smaller class
        ([5, 0, 0, 0], 0, -1),
        ([0, 0, 0, 9], -1, -1),
        ([0, 0, 4, 4], 2, 2),
    ],
)
def test_majority(counts, label, salient_label):
    assert majority_labels(np.array([counts])).tolist() == [label]
    assert majority_labels(np.array([counts]), excluded=0).tolist() == [salient_label]


def test_enlarged_cells_and_histograms_count_all_pixels():
    area = np.array([[0, 1], [1, 2]])
    pixels = enlarge(area, (6, 4))
    assert pixels.shape == (6, 4)
    assert pixels[2, 1] == 0
    assert pixels[3, 3] == 2
    assert label_histograms(pixels, np.full((6, 4), 1), 3, 1).tolist() == [[0, 6], [0, 12], [0, 6]]
