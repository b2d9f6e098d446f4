"""Weighted kNN against a brute-force loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from polyscene.runtime.knn import accuracy, knn_predict


def brute_force(queries, bank, labels, k, temperature, exclude_self):
    predictions = []
    for i, query in enumerate(queries):
        scored = [(float(query @ b), int(labels[j]), j) for j, b in enumerate(bank) if not (exclude_self and i == j)]
        votes = {}
        for similarity, label, _ in sorted(scored, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(similarity / temperature)
        predictions.append(max(sorted(votes), key=votes.get))
    return predictions


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_equals_brute_force(k, exclude_self):
    generator = torch.Generator().manual_seed(k)
    bank = F.normalize(torch.randn(60, 5, generator=generator), dim=1)
    labels = torch.randint(0, 4, (60,), generator=generator)
    queries = bank if exclude_self else F.normalize(torch.randn(30, 5, generator=generator), dim=1)
    actual = knn_predict(queries, bank, labels, k=k, temperature=0.1, exclude_self=exclude_self, chunk=7)
    assert actual.tolist() == brute_force(queries, bank, labels, k, 0.1, exclude_self)


def test_accuracy_is_a_share():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 0.5


def test_small_temperature_does_not_overflow():
    bank = F.normalize(torch.randn(10, 3), dim=1)
    predicted = knn_predict(bank, bank, torch.arange(10), k=3, temperature=1e-3)
    assert predicted.tolist() == list(range(10))


def test_no_neighbours_are_refused():
    one = torch.ones(1, 3)
    with pytest.raises(ValueError, match="leaves no neighbour"):
        knn_predict(one, one, torch.zeros(1, dtype=torch.int64), exclude_self=True)
    with pytest.raises(ValueError, match="bank itself"):
        knn_predict(torch.ones(3, 3), torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), exclude_self=True)
