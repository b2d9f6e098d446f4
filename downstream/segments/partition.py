"""Segments of one image: k-means on its dense features."""

from __future__ import annotations

import numpy as np


def kmeans_segments(features: np.ndarray, clusters: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """Partition points by k-means (faiss; Euclidean), started from k-means++.

    Args:
        features: (P, D) float32 points.
        clusters: K; fewer segments come out where there are fewer distinct points.
        seed: of the starting points.
        iterations: of Lloyd's algorithm.

    Returns:
        (P,) int64 segment numbers 0 .. R-1 with R <= K, each used at least once, in the order of first appearance.
    """
    import faiss

    start = plus_plus(features, min(clusters, len(features)), np.random.default_rng(seed))
    # By default faiss would draw a subset of the points.
    settings = {"min_points_per_centroid": 1, "max_points_per_centroid": len(features)}
    kmeans = faiss.Kmeans(features.shape[1], len(start), niter=iterations, seed=seed, **settings)
    features = np.ascontiguousarray(features, dtype=np.float32)
    kmeans.train(features, init_centroids=start)
    _, nearest = kmeans.index.search(features, 1)
    _, first, numbers = np.unique(nearest[:, 0], return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[numbers.reshape(-1)]


def plus_plus(features: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Starting centres of greedy k-means++ (Arthur and Vassilvitskii, 2007): (k, D), k <= ``clusters`` distinct points.

    Candidates for the next centre are drawn with probability proportional to the squared distance to the nearest centre
    so far; the one that lowers the sum of these most is taken. faiss has this only in its newest versions, and
    scikit-learn's takes twenty times as long as the clustering itself.
    """
    squares = np.einsum("pd,pd->p", features, features)
    trials = 2 + int(np.log(clusters))

    def distances(chosen: np.ndarray) -> np.ndarray:
        sums = squares[:, None] + squares[chosen]
        squared = sums - 2 * (features @ features[chosen].T)
        # Below this, the difference of two squares is rounding: a copy of a centre is no new centre.
        return np.where(squared < 1e-5 * sums, 0, squared)

    centres = generator.integers(len(features), size=1)
    nearest = distances(centres)[:, 0]
    while len(centres) < clusters:
        total = np.cumsum(nearest, dtype=np.float64)
        if total[-1] <= 0:
            break
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right").clip(max=len(total) - 1)
        lowered = np.minimum(nearest[:, None], distances(drawn))
        best = int(lowered.sum(axis=0).argmin())
        nearest = lowered[:, best]
        centres = np.append(centres, drawn[best])
    return np.ascontiguousarray(features[centres], dtype=np.float32)
