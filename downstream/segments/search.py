"""Exact inner-product search of bank regions (faiss)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

_SLACK = 1e-5
"""Inner products of unit vectors carry rounding errors of about 1e-6."""
_TOGETHER = 2048
"""Queries of one range search: for fewer, faiss does not multiply matrices."""


def most_similar(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k bank vectors with the largest inner product, by multiplying all pairs.

    What faiss' ``IndexFlatIP`` computes, without its copy of the bank.

    Args:
        queries: (Q, D) float32.
        bank: (M, D) float32.
        k: at most M.

    Returns:
        Inner products (Q, k) float32, descending, and bank positions (Q, k) int64.
    """
    import faiss

    return faiss.knn(queries, bank, k, metric=faiss.METRIC_INNER_PRODUCT)


def nearest_regions(queries: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar bank vector of every query, exactly.

    At the size of VOC (21,735 queries, 158,730 bank vectors, 2,048 dimensions) all pairs cost 14 TFLOP: minutes on two
    CPU cores. Large searches go through :func:`bounded_search`, which finds the same vectors.

    Args:
        queries: (Q, D) float32, L2-normalised.
        bank: (M, D) float32, L2-normalised, M >= 1.

    Returns:
        Inner products (Q,) float32 and bank positions (Q,) int64.
    """
    if len(queries) * len(bank) * bank.shape[1] >= 2e11 and bank.shape[1] >= 256:
        return bounded_search(queries, bank)
    scores, found = most_similar(queries, bank, 1)
    return scores[:, 0], found[:, 0]


def bounded_search(
    queries: np.ndarray, bank: np.ndarray, *, dims: int = 126, first_dims: int = 64, first_share: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """The result of :func:`nearest_regions` from few coordinates, without missing any vector.

    With an orthonormal basis P, the Cauchy-Schwarz inequality bounds an inner product by
    ``<Pq, Px> + |q - P'Pq| |x - P'Px|``, which is itself an inner product of ``dims + 1`` coordinates. A first search
    among some of the bank finds a good vector, whose inner product s(q) is computed in full. A second one lists all
    vectors with a bound above s(q), as a range search with radius 0 once -s(q) and 1 are appended. These are computed
    in full, in the order of their bounds, until none of the rest can win. P spans the main directions of the bank,
    where network features have most of their length. Where the bound excludes too little, as for features without any
    structure, all pairs are multiplied after all.

    Args:
        queries: (Q, D) float32, L2-normalised.
        bank: (M, D) float32, L2-normalised.
        dims: directions of P; with the bound and the score 128 coordinates, where faiss is fastest.
        first_dims: directions of the first search.
        first_share: the first search sees every such bank vector.

    Returns:
        As :func:`nearest_regions`.
    """
    import faiss

    basis = _main_directions(bank, dims)
    reduced, reduced_queries = _bounding(bank, basis), _bounding(queries, basis)
    part = np.ascontiguousarray(reduced[::first_share, :first_dims])
    _, guess = most_similar(np.ascontiguousarray(reduced_queries[:, :first_dims]), part, 1)
    found = guess[:, 0] * first_share
    scores = np.fromiter((bank[f] @ q for f, q in zip(found, queries)), dtype=np.float32, count=len(queries))
    index = faiss.IndexFlatIP(basis.shape[1] + 2)
    index.add(_append(reduced, np.ones(len(bank), dtype=np.float32)))
    reduced_queries = _append(reduced_queries, -scores)
    trial = np.linspace(0, len(queries) - 1, min(32, len(queries))).astype(int)
    if index.range_search(reduced_queries[trial], -_SLACK)[0][-1] > 0.02 * len(bank) * len(trial):
        scores, found = most_similar(queries, bank, 1)
        return scores[:, 0], found[:, 0]
    count = faiss.omp_get_max_threads()
    with ThreadPoolExecutor(count) as threads:
        for start in range(0, len(queries), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            limits, margins, candidates = index.range_search(reduced_queries[part], -_SLACK)
            lists = [(candidates[int(a) : int(b)], margins[int(a) : int(b)]) for a, b in pairwise(limits)]
            answers = scores[part], found[part]  # views
            jobs = [threads.submit(_settle, queries[part], bank, lists, *answers, n, count) for n in range(count)]
            for job in jobs:
                job.result()
    return scores, found


def _settle(
    queries: np.ndarray,
    bank: np.ndarray,
    lists: list[tuple[np.ndarray, np.ndarray]],
    scores: np.ndarray,
    found: np.ndarray,
    first: int,
    step: int,
) -> None:
    """Compute the candidates of every ``step``-th query in full, most promising first, as long as they can win.

    Args:
        queries: (Q, D).
        bank: (M, D).
        lists: per query its candidates' positions, and by how much their bounds exceed the query's score.
        scores: (Q,) best inner products so far; improved in place.
        found: (Q,) their bank positions.
        first: the first query.
        step: distance to the next.
    """
    # One buffer: arrays of this size would be mapped and unmapped by the system for every query.
    buffer = np.empty((256, bank.shape[1]), dtype=np.float32)
    for i in range(first, len(queries), step):
        candidates, margins = lists[i]
        order = np.argsort(-margins)
        bounds = margins[order] + scores[i]
        done, rows = 0, 16
        while done < len(order) and bounds[done] > scores[i] - _SLACK:
            # Bounds descend: those that can still win come next, without gaps.
            rows = min(rows, int(np.count_nonzero(bounds[done:] > scores[i] - _SLACK)))
            some = candidates[order[done : done + rows]]
            vectors = np.take(bank, some, axis=0, out=buffer[:rows], mode="clip")
            exact = np.einsum("nd,d->n", vectors, queries[i])
            if exact.max() > scores[i]:
                scores[i], found[i] = exact.max(), some[exact.argmax()]
            done, rows = done + rows, len(buffer)


def _main_directions(bank: np.ndarray, dims: int, samples: int = 8192) -> np.ndarray:
    """(D, dims) float32 orthonormal columns: the leading directions of evenly spaced bank vectors, not centred."""
    from sklearn.utils.extmath import randomized_svd

    some = bank[:: max(1, len(bank) // samples)]
    _, _, directions = randomized_svd(some, min(dims, *some.shape), n_iter=2, random_state=0)
    # The bound needs an orthonormal basis; how well it fits the bank decides the speed only.
    return np.linalg.qr(directions.T)[0].astype(np.float32)


def _bounding(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(N, dims + 1) float32: coordinates in the basis, and the length of what lies outside it."""
    output = np.empty((len(vectors), basis.shape[1] + 1), dtype=np.float32)
    for start in range(0, len(vectors), 8192):
        part = vectors[start : start + 8192]
        inside = part @ basis
        squares = np.einsum("nd,nd->n", part, part) - np.einsum("nd,nd->n", inside, inside)
        output[start : start + 8192, :-1] = inside
        # A difference of two squares near 1: an error of 1e-7 must not make the bound too small.
        output[start : start + 8192, -1] = np.sqrt((squares + 1e-6).clip(min=0))
    return output


def _append(vectors: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.concatenate([vectors, column[:, None]], axis=1)
