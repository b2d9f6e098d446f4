"""Maximum matchings against SciPy's."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from polyscene.downstream.multitask.metrics.bipartite_matching import greedy_matching, maximum_matching


def matched(graph, row_mate, column_mate):
    """Run the search; check that the result is a matching along edges."""
    maximum_matching(graph.indptr, graph.indices, row_mate, column_mate)
    rows = np.flatnonzero(row_mate >= 0)
    assert (column_mate[row_mate[rows]] == rows).all()
    assert len(rows) == (column_mate >= 0).sum()
    dense = graph.toarray()
    assert dense[rows, row_mate[rows]].all()
    return len(rows)


@pytest.mark.parametrize("density", [0.005, 0.02, 0.05, 0.3])
def test_random_graphs(density):
    generator = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(generator.integers(1, 80, 2))
        graph = csr_array(generator.random(shape) < density)
        expected = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
        from_nothing = matched(graph, np.full(shape[0], -1, np.int32), np.full(shape[1], -1, np.int32))
        assert from_nothing == expected

        # From a greedy start: edges in any order, each a group of its own.
        rows, columns = graph.nonzero()
        order = generator.permutation(len(rows))
        start = greedy_matching(rows[order], columns[order], np.arange(1, len(rows) + 1), shape)
        kept = start[0] >= 0
        assert matched(graph, *start) == expected
        assert (start[0][kept] >= 0).all()  # who was matched stays matched


def test_a_long_alternating_path():
    """Row i reaches columns i and i + 1, and all are matched the wrong way but for the ends."""
    size = 300
    rows, columns = np.repeat(np.arange(size), 2), np.repeat(np.arange(size), 2) + np.tile([0, 1], size)
    graph = csr_array((np.ones(2 * size, dtype=bool), (rows, columns)), shape=(size, size + 1))
    row_mate, column_mate = np.arange(1, size + 1, dtype=np.int32), np.arange(-1, size, dtype=np.int32)
    row_mate[-1] = -1
    column_mate[-1] = -1
    graph = graph[:, :size].tocsr()  # the last column is gone: only shifting everybody helps the last row
    assert matched(graph, row_mate, column_mate[:size]) == size


def test_greedy_takes_groups_in_order():
    row_mate, column_mate = greedy_matching(
        np.array([0, 1, 0, 1, 2]), np.array([1, 0, 0, 1, 0]), np.array([1, 1, 3, 5]), (3, 3)
    )
    assert row_mate.tolist() == [1, 0, -1]
    assert column_mate.tolist() == [1, 0, -1]
