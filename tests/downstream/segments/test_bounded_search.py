"""The bounded search finds what comparing all pairs finds."""

import faiss
import numpy as np
import pytest

from polyscene.downstream.segments.bounded_search import bounded_search


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def structured(count, dims, seed):
    """Features with a common mean and a spectrum that falls off, as a network's are."""
    generator = np.random.default_rng(seed)
    return unit(generator.normal(size=(count, dims)) * np.arange(1, dims + 1) ** -0.75 + 0.1)


def flat_index(queries, bank):
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    scores, found = index.search(queries, 1)
    return scores[:, 0], found[:, 0]


@pytest.mark.parametrize(("dims", "cell_dims", "cell_size"), [(32, 4, 100), (64, 2, 5000), (126, 8, 20), (256, 1, 64)])
def test_every_split_finds_the_most_similar(dims, cell_dims, cell_size):
    queries, bank = structured(300, 256, 0), structured(5000, 256, 1)
    scores, found = bounded_search(queries, bank, dims=dims, cell_dims=cell_dims, cell_size=cell_size)
    expected_scores, expected = flat_index(queries, bank)
    assert (found == expected).all()
    assert np.allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 64, 150])
def test_blocks_and_threads_do_not_matter(threads, block):
    queries, bank = structured(150, 256, 0), structured(3000, 256, 1)
    scores, found = bounded_search(queries, bank, dims=32, cell_size=100, block=block, threads=threads)
    assert (found == (queries @ bank.T).argmax(axis=1)).all()
    assert np.allclose(scores, (queries @ bank.T).max(axis=1), atol=1e-6)


def test_without_structure_there_is_no_answer():
    generator = np.random.default_rng(0)
    queries, bank = (unit(generator.normal(size=(n, 256))) for n in (50, 2000))
    assert bounded_search(queries, bank) is None


def test_members_of_the_bank_find_themselves():
    bank = structured(3000, 256, 1)
    scores, found = bounded_search(bank[::7].copy(), bank)
    assert (found == np.arange(0, 3000, 7)).all()
    assert np.allclose(scores, 1, atol=1e-5)


def test_shorter_vectors_are_found_too():
    """A region without features is a zero vector: it is the best answer where all others point away."""
    queries = np.abs(structured(40, 256, 0))
    bank = np.concatenate([-np.abs(structured(900, 256, 1)), np.zeros((1, 256), dtype=np.float32)])
    scores, found = bounded_search(queries, bank, dims=200, cell_size=50)
    assert (found == 900).all()
    assert (scores == 0).all()
