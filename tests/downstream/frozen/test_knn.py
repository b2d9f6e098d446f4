"""The kNN probe against a brute-force vote, and accuracies by class."""

import math

import pytest
import torch

from polyscene.downstream.frozen.accuracy import accuracy_by_class
from polyscene.downstream.frozen.knn import knn_probe

CPU = torch.device("cpu")


def unit(count, channels, seed):
    return torch.nn.functional.normalize(torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("k", [1, 5, 40])
def test_equals_brute_force(k):
    bank, queries = unit(40, 8, 0), unit(25, 8, 1)
    labels = torch.arange(40) % 4
    found = knn_probe(bank, labels, queries, k=k, temperature=0.1, device=CPU)
    for query, label in zip(queries.tolist(), found.tolist()):
        ranked = sorted(((sum(a * b for a, b in zip(query, row)), i) for i, row in enumerate(bank.tolist())))[-k:]
        votes = [0.0] * 4
        for similarity, index in ranked:
            votes[int(labels[index])] += math.exp(similarity / 0.1)
        assert label == votes.index(max(votes))


def test_accuracy_by_class_leaves_absent_classes_out():
    shares = accuracy_by_class(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 2, 2]), ["a", "b", "c"])
    assert shares == {"a": 1.0, "c": pytest.approx(2 / 3)}
