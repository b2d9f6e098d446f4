"""RSA of descriptions whose similarity is known."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from polyscene.downstream.multitask.analysis.rsa import cosines, dissimilarities, similarity


@pytest.fixture
def vectors():
    """Three descriptions of 40 items, (3, 40, 600), without any relation to each other."""
    return torch.randn(3, 40, 600, generator=torch.Generator().manual_seed(0))


def test_dissimilarities_are_scipys(vectors):
    expected = squareform(pdist(vectors[0].double().numpy(), metric="correlation"))
    np.testing.assert_allclose(dissimilarities(vectors[0]).numpy(), expected, atol=1e-12)


def test_similarity_is_scipys(vectors):
    matrices = [dissimilarities(each) for each in vectors]
    rows, columns = np.triu_indices(40, 1)
    expected = spearmanr(np.stack([matrix.numpy()[rows, columns] for matrix in matrices]), axis=1).statistic
    np.testing.assert_allclose(similarity(matrices).numpy(), expected, atol=1e-12)


def test_the_same_items_are_alike(vectors):
    """1 for the same description, whatever its scale, and for its mirror image."""
    turned = vectors[0].flip(1)
    found = similarity([dissimilarities(each) for each in (vectors[0], 7 * vectors[0], -vectors[0], turned)])
    torch.testing.assert_close(found, torch.ones(4, 4, dtype=torch.float64))


def test_unrelated_descriptions_have_no_similarity(vectors):
    found = similarity([dissimilarities(each) for each in vectors])
    assert found.diagonal().tolist() == [1, 1, 1]
    # 780 pairs of items: a standard deviation of about 0.036.
    assert (found - torch.eye(3)).abs().max() < 0.12


def test_similarity_grows_with_what_is_shared():
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(4, 300, generator=generator)[torch.arange(40) % 4]
    first, second = (torch.randn(40, 300, generator=generator) for _ in range(2))
    found = [
        float(similarity([dissimilarities(first + share * groups), dissimilarities(second + share * groups)])[0, 1])
        for share in (0, 0.3, 3)
    ]
    assert found == sorted(found)
    assert found[-1] > 0.5


def test_descriptions_that_say_nothing(vectors):
    silent = torch.zeros(40, 600)
    assert torch.equal(dissimilarities(silent), 1 - torch.eye(40, dtype=torch.float64))
    found = similarity([dissimilarities(vectors[0]), dissimilarities(silent)])
    assert torch.equal(found, torch.eye(2, dtype=torch.float64))
    for matrices in ([torch.zeros(2, 2)], [torch.zeros(3, 3), torch.zeros(4, 4)]):
        with pytest.raises(ValueError, match="at least 3"):
            similarity(matrices)


def test_cosines():
    first = torch.tensor([[1.0, 0], [1, 1], [0, 0], [3, 4]])
    second = torch.tensor([[2.0, 0], [-1, 1], [1, 0], [-3, -4]])
    torch.testing.assert_close(cosines(first, second), torch.tensor([1.0, 0, 0, -1], dtype=torch.float64))
