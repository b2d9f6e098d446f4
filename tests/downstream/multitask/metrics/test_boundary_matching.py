"""Matching boundary pixels by hand and against SciPy's maximum matching of all pairs within reach."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from polyscene.downstream.multitask.metrics.boundary_matching import BoundaryMatcher


def counts(annotations, boundary, radius):
    return BoundaryMatcher(np.asarray(annotations), np.ones(boundary.shape, dtype=bool), radius).count(boundary)


def line(column, size=12):
    image = np.zeros((size, size), dtype=bool)
    image[:, column] = True
    return image


@pytest.mark.parametrize(("radius", "found"), [(2.9, 0), (3, 12), (3.1, 12)])
def test_a_shifted_line_is_found_within_the_radius(radius, found):
    assert counts([line(4)], line(7), radius) == (found, found)


def test_every_pixel_is_used_once():
    predicted = line(4) | line(6)
    assert counts([line(5)], predicted, 1) == (12, 12)
    assert counts([predicted], line(5), 1) == (12, 12)


def test_annotators_are_matched_alone_and_a_prediction_is_right_for_any_of_them():
    predicted = line(2) | line(8)
    assert counts([line(2), line(8), line(5)], predicted, 1) == (24, 24)
    assert counts([line(2), line(2)], predicted, 1) == (24, 12)
    assert counts([line(2), np.zeros((12, 12), dtype=bool)], predicted, 1) == (12, 12)


def test_nothing_predicted_or_annotated():
    nothing = np.zeros((12, 12), dtype=bool)
    assert counts([line(2)], nothing, 3) == (0, 0)
    assert counts([nothing], line(2), 3) == (0, 0)
    assert counts([line(2)], line(2), 0.4) == (12, 12)


@pytest.mark.parametrize("radius", [1, 2.3, 4.34])
def test_against_all_pairs(radius):
    generator = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.3):
        annotations = generator.random((3, 25, 40)) < density
        candidates = generator.random((25, 40)) < 0.5
        matcher = BoundaryMatcher(annotations, candidates, radius)
        for share in (0.1, 0.7):
            boundary = candidates & (generator.random((25, 40)) < share)
            recalled, precise = matcher.count(boundary)
            sizes = [pairs_matched(boundary, annotation, radius) for annotation in annotations]
            assert recalled == sum(sizes)
            assert max(sizes) <= precise <= min(sum(sizes), boundary.sum())


def pairs_matched(boundary, annotation, radius):
    near = csr_array(cdist(np.argwhere(boundary), np.argwhere(annotation)) <= radius)
    return int((maximum_bipartite_matching(near, perm_type="column") >= 0).sum())
