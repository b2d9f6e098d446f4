"""Exact nearest neighbours of unit vectors from few of their coordinates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_SLACK = 1e-5
"""Inner products of unit vectors carry rounding errors of about 1e-6."""
_NEAR = 16
"""Cells that are searched for a first answer."""


def bounded_search(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    dims: int = 126,
    cell_dims: int = 4,
    cell_size: int = 320,
    block: int = 2048,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The most similar bank vector of every query, without comparing all pairs and without missing any vector.

    With an orthonormal basis P, the Cauchy-Schwarz inequality bounds an inner product by
    ``<Pq, Px> + |q - P'Pq| |x - P'Px|``, which is itself an inner product of ``dims + 1`` coordinates. P spans the main
    directions of the bank, where network features have most of their length. The bank is cut into cells that are boxes
    in the first few coordinates.

    1. The nearest cells give every query a good vector, whose inner product s(q) is computed in full.
    2. A cell farther away than that vector cannot hold a better one. In the others, vectors whose bound exceeds s(q)
       are candidates.
    3. Candidates are computed in full, in the order of their bounds, until none of the rest can win.

    Args:
        queries: (Q, D) float32, L2-normalised.
        bank: (M, D) float32, L2-normalised.
        dims: directions of P.
        cell_dims: those that cells are boxes in; one more is the length outside them.
        cell_size: largest number of bank vectors in a cell.
        block: queries that a thread takes at a time.
        threads: number of threads.

    Returns:
        Inner products (Q,) float32 and bank positions (Q,) int64; None where the bound excludes too little to be of
        use, as for vectors without any structure.
    """
    from threadpoolctl import threadpool_limits

    basis = _main_directions(bank, dims)
    cells = _cut(bank, _bounding(bank, basis), cell_dims, cell_size)
    reduced = _bounding(queries, basis)
    trial = np.linspace(0, len(queries) - 1, min(32, len(queries))).astype(int)
    scores, _, apart = _first_answers(queries[trial], reduced[trial], cells, cell_dims)
    if len(_candidates(reduced[trial], scores, apart, cells)[0]) > 0.02 * len(bank) * len(trial):
        return None

    def answer(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, found, apart = _first_answers(queries[some], reduced[some], cells, cell_dims)
        return _settle(queries[some], bank, scores, found, *_candidates(reduced[some], scores, apart, cells))

    # Similar queries have the same candidates, which then stay in the processor's cache.
    order = np.concatenate(_boxes(_cell_coordinates(reduced, cell_dims), 64))
    blocks = np.split(order, range(block, len(order), block))
    scores, found = np.empty(len(queries), dtype=np.float32), np.empty(len(queries), dtype=np.int64)
    # One level of threads: those of the matrix products would compete with ours.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for some, answers in zip(blocks, pool.map(answer, blocks)):
            scores[some], found[some] = answers
    return scores, found


@dataclass(frozen=True)
class _Cells:
    """A bank in boxes.

    Attributes:
        bank: (M, D), in its own order.
        reduced: (M, dims + 1) coordinates of the bound, sorted by cell.
        order: (M,) bank positions of the sorted vectors.
        limits: (C + 1,) where cells start.
        low: (C, cell_dims + 1) smallest coordinates of a cell.
        high: (C, cell_dims + 1) largest ones.
    """

    bank: np.ndarray
    reduced: np.ndarray
    order: np.ndarray
    limits: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _cut(bank: np.ndarray, reduced: np.ndarray, cell_dims: int, cell_size: int) -> _Cells:
    coordinates = _cell_coordinates(reduced, cell_dims)
    members = _boxes(coordinates, cell_size)
    order = np.concatenate(members)
    limits = np.cumsum([0, *map(len, members)])
    low, high = (np.stack([extreme(coordinates[m], axis=0) for m in members]) for extreme in (np.min, np.max))
    return _Cells(bank, reduced[order], order, limits, low, high)


def _boxes(coordinates: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows in groups of at most ``size``: halved at the median where they vary most, neighbours next to each other."""
    done, waiting = [], [np.arange(len(coordinates))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            done.append(rows)
            continue
        values = coordinates[rows]
        half = len(rows) // 2
        ranks = np.argpartition(values[:, values.var(axis=0).argmax()], half)
        waiting += [rows[ranks[half:]], rows[ranks[:half]]]
    return done


def _first_answers(
    queries: np.ndarray, reduced: np.ndarray, cells: _Cells, cell_dims: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every query (Q,): the inner product and position of a good bank vector; (Q, C): squared distances to cells."""
    coordinates = _cell_coordinates(reduced, cell_dims)
    apart = np.zeros((len(queries), len(cells.low)), dtype=np.float32)
    for values, low, high in zip(coordinates.T[:, :, None], cells.low.T, cells.high.T):
        apart += np.maximum(0, np.maximum(low - values, values - high)) ** 2
    count = min(_NEAR, len(cells.low))
    near = np.zeros(apart.shape, dtype=bool)
    np.put_along_axis(near, np.argpartition(apart, count - 1, axis=1)[:, :count], True, axis=1)
    bounds, places = np.full(len(queries), -np.inf, dtype=np.float32), np.zeros(len(queries), dtype=np.int64)
    for rows, start, products in _products(reduced, near, cells):
        best = products.argmax(axis=1)
        values = products[np.arange(len(rows)), best]
        higher = values > bounds[rows]
        bounds[rows[higher]], places[rows[higher]] = values[higher], start + best[higher]
    found = cells.order[places]
    scores = np.fromiter((cells.bank[f] @ q for f, q in zip(found, queries)), dtype=np.float32, count=len(queries))
    return scores, found, apart


def _candidates(
    reduced: np.ndarray, scores: np.ndarray, apart: np.ndarray, cells: _Cells
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (n,) that can beat the scores: query rows, ascending, bank positions, and bounds, descending per query."""
    # |q - x|^2 <= 2 - 2 <q, x> for vectors of length 1 (or less).
    within = apart < (2 - 2 * scores + _SLACK)[:, None]
    pairs = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))]
    for rows, start, products in _products(reduced, within, cells):
        hits = np.flatnonzero(products > scores[rows, None] - _SLACK)
        row, column = np.divmod(hits, products.shape[1])
        pairs.append((rows[row], start + column, products.ravel()[hits]))
    rows, places, bounds = (np.concatenate(parts) for parts in zip(*pairs))
    order = np.lexsort((-bounds, rows))
    return rows[order], cells.order[places[order]], bounds[order]


def _products(reduced: np.ndarray, wanted: np.ndarray, cells: _Cells):
    """Per cell that any query wants (Q, C): the queries' rows, the cell's start, and their bounds with its members."""
    for cell, rows in enumerate(np.ascontiguousarray(wanted.T)):
        if rows.any():
            rows = np.flatnonzero(rows)
            start, stop = cells.limits[cell : cell + 2]
            yield rows, start, reduced[rows] @ cells.reduced[start:stop].T


def _settle(
    queries: np.ndarray,
    bank: np.ndarray,
    scores: np.ndarray,
    found: np.ndarray,
    rows: np.ndarray,
    candidates: np.ndarray,
    bounds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute candidates in full, most promising first, as long as they can win.

    Args:
        queries: (Q, D).
        bank: (M, D).
        scores: (Q,) best inner products so far; improved in place.
        found: (Q,) their bank positions; improved in place.
        rows: (n,) queries of the candidates, ascending.
        candidates: (n,) bank positions.
        bounds: (n,) largest possible inner products, descending per query.

    Returns:
        ``scores`` and ``found``.
    """
    # One buffer: arrays of this size would be mapped and unmapped by the system for every query.
    buffer = np.empty((256, bank.shape[1]), dtype=np.float32)
    limits = np.searchsorted(rows, np.arange(len(queries) + 1))
    for i, (done, end) in enumerate(pairwise(limits)):
        count = 16
        while done < end and bounds[done] > scores[i] - _SLACK:
            # Bounds descend: those that can still win come next, without gaps.
            count = min(count, int(np.count_nonzero(bounds[done:end] > scores[i] - _SLACK)))
            some = candidates[done : done + count]
            exact = np.take(bank, some, axis=0, out=buffer[:count], mode="clip") @ queries[i]
            best = exact.argmax()
            if exact[best] > scores[i]:
                scores[i], found[i] = exact[best], some[best]
            done, count = done + count, len(buffer)
    return scores, found


def _main_directions(bank: np.ndarray, dims: int, samples: int = 2048) -> np.ndarray:
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
        output[start : start + 8192, :-1] = inside
        output[start : start + 8192, -1] = _outside(part, inside)
    return output


def _cell_coordinates(reduced: np.ndarray, cell_dims: int) -> np.ndarray:
    """(N, cell_dims + 1): the leading coordinates, and the length of the rest. Distances are at most the vectors'."""
    leading = reduced[:, :cell_dims]
    return np.concatenate([leading, _outside(reduced, leading)[:, None]], axis=1)


def _outside(vectors: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(N,) the length that is left when coordinates inside a subspace are taken away."""
    squares = np.einsum("nd,nd->n", vectors, vectors) - np.einsum("nd,nd->n", inside, inside)
    # A difference of two squares near 1: an error of 1e-7 must not make the bound too small.
    return np.sqrt((squares + 1e-6).clip(min=0))
