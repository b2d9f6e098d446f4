"""K-means segments against scientific Python's own."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from polyscene.downstream.segments.partition import kmeans_segments, plus_plus


def blobs(clusters, dims, points, seed):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, dims)) * 5
    owner = generator.permutation(np.arange(points) % clusters)
    data = centres[owner] + generator.normal(size=(points, dims)) * 0.3
    return (data / np.linalg.norm(data, axis=1, keepdims=True)).astype(np.float32), owner


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn_on_separable_data(seed):
    data, owner = blobs(15, 64, 600, seed)
    found = kmeans_segments(data, 15, seed=seed)
    oracle = KMeans(15, n_init=3, random_state=0).fit_predict(data)
    assert adjusted_rand_score(oracle, owner) == 1
    assert adjusted_rand_score(found, oracle) == 1
    assert sorted(set(found)) == list(range(15))
    assert found[0] == 0


def test_inertia_is_that_of_scikit_learn_on_data_that_overlaps():
    data = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    found = kmeans_segments(data, 6, iterations=60)
    inertia = sum(((data[found == i] - data[found == i].mean(0)) ** 2).sum() for i in range(6))
    assert inertia == pytest.approx(KMeans(6, n_init=5, random_state=0).fit(data).inertia_, rel=0.01)


def test_same_seed_same_segments():
    data = np.random.default_rng(1).normal(size=(500, 16)).astype(np.float32)
    assert (kmeans_segments(data, 7, seed=3) == kmeans_segments(data, 7, seed=3)).all()


@pytest.mark.parametrize(("points", "distinct"), [(40, 1), (40, 3), (4, 4), (1, 1)])
def test_fewer_distinct_points_than_clusters(points, distinct):
    values = np.random.default_rng(2).normal(size=(distinct, 32)).astype(np.float32)
    owner = np.arange(points) % distinct
    found = kmeans_segments(values[owner], 15)
    assert found.max() == distinct - 1
    assert adjusted_rand_score(found, owner) == 1


def test_starting_points_are_distinct_members():
    data, owner = blobs(5, 16, 100, 0)
    start = plus_plus(data, 5, np.random.default_rng(0))
    members = [int(np.flatnonzero((data == row).all(axis=1))[0]) for row in start]
    assert len({int(owner[m]) for m in members}) == 5
