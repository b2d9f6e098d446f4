"""The bounded search finds what comparing all pairs finds."""

import faiss
import numpy as np
import pytest

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


@pytest.mark.parametrize("dims", [(16, 8), (64, 32), (256, 64)])
def test_bounded_search_is_exact(dims):
    queries, bank = structured(300, 256, 0), structured(5000, 256, 1)
    scores, found = search.bounded_search(queries, bank, dims=dims[0], first_dims=dims[1])
    expected_scores, expected = flat_index(queries, bank, 1)
    assert (found == expected[:, 0]).all()
    assert np.allclose(scores, expected_scores[:, 0], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_bounded_search_in_parts_and_threads(monkeypatch, threads):
    monkeypatch.setattr(search, "_TOGETHER", 64)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: threads)
    queries, bank = structured(150, 256, 0), structured(3000, 256, 1)
    scores, found = search.bounded_search(queries, bank, dims=32, first_dims=8)
    assert (found == (queries @ bank.T).argmax(axis=1)).all()
    assert np.allclose(scores, (queries @ bank.T).max(axis=1), atol=1e-6)


def test_bounded_search_without_structure_falls_back():
    generator = np.random.default_rng(0)
    queries, bank = (unit(generator.normal(size=(n, 256))) for n in (50, 2000))
    scores, found = search.bounded_search(queries, bank)
    assert (found == (queries @ bank.T).argmax(axis=1)).all()
    assert np.allclose(scores, (queries @ bank.T).max(axis=1), atol=1e-6)


def test_members_of_the_bank_find_themselves():
    bank = structured(3000, 256, 1)
    scores, found = search.bounded_search(bank[::7].copy(), bank)
    assert (found == np.arange(0, 3000, 7)).all()
    assert np.allclose(scores, 1, atol=1e-5)


def test_large_searches_take_the_bounded_way(monkeypatch):
    queries, bank = structured(3, 256, 0), structured(40, 256, 1)
    monkeypatch.setattr(search, "bounded_search", lambda *_: "bounded")
    assert search.nearest_regions(queries, bank) != "bounded"
    assert search.nearest_regions(np.broadcast_to(queries[:1], (2 * 10**8, 256)), bank) == "bounded"
