"""Exact search of bank regions."""

import faiss
import numpy as np

from polyscene.downstream.segments import search


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def structured(count, dims, seed):
    """Features with a common mean and a spectrum that falls off, as a network's are."""
    generator = np.random.default_rng(seed)
    return unit(generator.normal(size=(count, dims)) * np.arange(1, dims + 1) ** -0.75 + 0.1)


def flat_index(queries, bank, k):
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    return index.search(queries, k)


def test_all_pairs_is_the_flat_index():
    queries, bank = structured(30, 20, 0), structured(200, 20, 1)
    scores, found = search.most_similar(queries, bank, 5)
    expected_scores, expected = flat_index(queries, bank, 5)
    assert (found == expected).all()
    assert np.allclose(scores, expected_scores, atol=1e-6)
    assert np.allclose(scores[:, 0], (queries @ bank.T).max(axis=1), atol=1e-6)


def test_large_searches_are_bounded_unless_that_is_of_no_use(monkeypatch):
    queries, bank = structured(3, 256, 0), structured(40, 256, 1)
    many = np.broadcast_to(queries[:1], (2 * 10**8, 256))
    answers = np.zeros(3), np.zeros(3)
    monkeypatch.setattr(search, "bounded_search", lambda *_, threads: answers)
    assert search.nearest_regions(queries, bank) is not answers
    assert search.nearest_regions(many, bank) is answers
    monkeypatch.setattr(search, "bounded_search", lambda *_, threads: None)
    monkeypatch.setattr(search, "most_similar", lambda *_: (np.ones((3, 1)), np.full((3, 1), 7)))
    scores, found = search.nearest_regions(many, bank)
    assert (scores == 1).all()
    assert (found == 7).all()
