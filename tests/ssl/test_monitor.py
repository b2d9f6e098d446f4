"""Health numbers at cases with known answers."""

import math

import pytest
import torch
import torch.nn.functional as F

from polyscene.ssl.monitor import effective_rank, embedding_std, neighbour_label_share


def test_embedding_std_is_zero_when_collapsed_and_one_when_spread():
    assert float(embedding_std(torch.ones(50, 16) / 4)) == 0
    spread = F.normalize(torch.randn(20000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(embedding_std(spread)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions(rank):
    # +- e_i: centred already, `rank` equal singular values.
    features = torch.cat([torch.eye(12)[:rank], -torch.eye(12)[:rank]])
    assert float(effective_rank(features)) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_unequal_directions():
    features = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    shares = torch.tensor([0.75, 0.25])
    assert float(effective_rank(features)) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)


def test_neighbour_label_share_counts_written_slots():
    found = torch.tensor([[[0, 1]], [[1, -1]]])
    assert float(neighbour_label_share(found, torch.tensor([0, 1]))) == pytest.approx(2 / 3)
    nothing = neighbour_label_share(torch.tensor([[[-1]]]), torch.tensor([0]))
    assert math.isnan(float(nothing))
