"""Losses against a naive float64 oracle that follows the formulas word by word."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from polyscene.ssl.moco.losses import contrastive_losses, info_nce, nearest_neighbour_loss


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def naive_info_nce(queries, anchors, queue, temperature):
    total = 0.0
    batch, views, _ = queries.shape
    for b in range(batch):
        for v in range(views):
            positive = math.exp(float(queries[b, v] @ anchors[b]) / temperature)
            negative = sum(math.exp(float(queries[b, v] @ n) / temperature) for n in queue)
            total -= math.log(positive / (positive + negative))
    return total / (batch * views)


def naive_neighbour(queries, queue, features, feature_queue, k, temperature):
    total = 0.0
    batch, views, _ = queries.shape
    for b in range(batch):
        for v in range(views):
            query = features[b, v] / features[b, v].norm()
            ranking = sorted(range(len(queue)), key=lambda j: -float(query @ feature_queue[j]))[:k]
            logits = [float(queries[b, v] @ n) / temperature for n in queue]
            partition = math.log(sum(math.exp(x) for x in logits))
            total -= sum(logits[j] - partition for j in ranking) / k
    return total / (batch * views)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    views=st.integers(1, 5),
    dim=st.integers(2, 9),
    slots=st.integers(1, 17),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 1000),
)
def test_info_nce_equals_naive_oracle(batch, views, dim, slots, temperature, seed):
    queries, anchors, queue = unit(batch, views, dim, seed=seed), unit(batch, dim, seed=seed + 1), unit(slots, dim)
    expected = naive_info_nce(queries, anchors, queue, temperature)
    assert info_nce(queries, anchors, queue, temperature).item() == pytest.approx(expected, rel=1e-10)
    single = info_nce(queries.float(), anchors.float(), queue.float(), temperature)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    views=st.integers(1, 5),
    slots=st.integers(3, 17),
    k=st.integers(1, 3),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 1000),
)
def test_neighbour_loss_equals_naive_oracle(batch, views, slots, k, temperature, seed):
    queries, features = unit(batch, views, 4, seed=seed), 3.0 * unit(batch, views, 6, seed=seed + 1)
    queue, feature_queue = unit(slots, 4, seed=seed + 2), unit(slots, 6, seed=seed + 3)
    expected = naive_neighbour(queries, queue, features, feature_queue, k, temperature)
    actual = nearest_neighbour_loss(queries, queue, features, feature_queue, k, temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-10)


def test_k_equal_to_the_queue_is_cross_entropy_with_uniform_targets():
    queries, queue = unit(3, 2, 5), unit(7, 5, seed=4)
    features, feature_queue = unit(3, 2, 6, seed=1), unit(7, 6, seed=2)
    logits = (queries @ queue.T).flatten(0, 1) / 0.2
    uniform = torch.full((6, 7), 1 / 7, dtype=torch.float64)
    expected = F.cross_entropy(logits, uniform)
    actual = nearest_neighbour_loss(queries, queue, features, feature_queue, 7, 0.2)
    torch.testing.assert_close(actual, expected)


def test_info_nce_equals_torch_cross_entropy():
    queries, anchors, queue = unit(4, 5, 8), unit(4, 8, seed=1), unit(33, 8, seed=2)
    positives = (queries * anchors[:, None]).sum(-1, keepdim=True)
    logits = torch.cat([positives, queries @ queue.T], dim=-1).flatten(0, 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(info_nce(queries, anchors, queue, 0.2), expected)


def test_info_nce_equals_lightlys():
    """One view a query, the case that lightly's loss with a memory bank covers."""
    from lightly.loss import NTXentLoss

    queries, anchors = unit(6, 1, 8, dtype=torch.float32), unit(6, 8, seed=1, dtype=torch.float32)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(40, 8))
    theirs(queries[:, 0], anchors)  # makes the bank
    queue = theirs.memory_bank.bank.T.clone() if theirs.memory_bank.bank.shape[0] == 8 else theirs.memory_bank.bank
    queue = queue.clone()
    torch.testing.assert_close(info_nce(queries, anchors, queue, 0.2), theirs(queries[:, 0], anchors))


def test_gradients():
    queries = unit(2, 3, 4).requires_grad_()
    anchors, queue = unit(2, 4, seed=1), unit(9, 4, seed=2)
    features, feature_queue = unit(2, 3, 5, seed=3), unit(9, 5, seed=4)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, anchors, queue, 0.2), queries)
    assert torch.autograd.gradcheck(
        lambda q: nearest_neighbour_loss(q, queue, features, feature_queue, 3, 0.2), queries
    )


def test_neighbours_come_from_features_and_carry_no_gradient():
    queries, queue = unit(1, 1, 4).requires_grad_(), unit(6, 4, seed=1)
    features, feature_queue = unit(1, 1, 5, seed=2).requires_grad_(), unit(6, 5, seed=3)
    result = contrastive_losses(
        queries, unit(1, 4, seed=5), queue, 0.2, features=features, feature_queue=feature_queue, k=2
    )
    expected = (features[0, 0] @ feature_queue.T).topk(2).indices
    assert result.neighbours[0, 0].tolist() == expected.tolist()
    (result.instance + result.neighbour).backward()
    assert features.grad is None
    assert queries.grad.abs().sum() > 0


def test_joint_losses_equal_the_separate_ones():
    queries, anchors, queue = unit(4, 5, 8), unit(4, 8, seed=1), unit(33, 8, seed=2)
    features, feature_queue = unit(4, 5, 6, seed=3), unit(33, 6, seed=4)
    both = contrastive_losses(queries, anchors, queue, 0.2, features=features, feature_queue=feature_queue, k=5)
    torch.testing.assert_close(both.instance, info_nce(queries, anchors, queue, 0.2))
    alone = nearest_neighbour_loss(queries, queue, features, feature_queue, 5, 0.2)
    torch.testing.assert_close(both.neighbour, alone)


def test_slots_never_written_are_no_neighbours_but_stay_negatives():
    queries, queue = unit(2, 2, 4), unit(8, 4, seed=1)
    features, feature_queue = unit(2, 2, 5, seed=2), unit(8, 5, seed=3)
    feature_queue[5:] = features.flatten(0, 1)[:3]  # the most similar slots are noise
    for written in (3, torch.tensor(3)):
        result = contrastive_losses(
            queries,
            unit(2, 4, seed=9),
            queue,
            0.2,
            features=features,
            feature_queue=feature_queue,
            k=2,
            written=written,
        )
        assert (result.neighbours < 3).all()
    full = info_nce(queries, unit(2, 4, seed=9), queue, 0.2)
    torch.testing.assert_close(result.instance, full)


def test_fewer_written_slots_than_k_average_over_those_there_are():
    queries, queue = unit(2, 2, 4), unit(8, 4, seed=1)
    features, feature_queue = unit(2, 2, 5, seed=2), unit(8, 5, seed=3)
    logits = queries @ queue.T / 0.2
    expected = (logits.logsumexp(-1) - logits[..., 0]).mean()
    actual = nearest_neighbour_loss(queries, queue, features, feature_queue, 3, 0.2, written=1)
    torch.testing.assert_close(actual, expected)
    assert nearest_neighbour_loss(queries, queue, features, feature_queue, 3, 0.2, written=0).item() == 0


def test_top1_counts_queries_whose_anchor_beats_every_negative():
    anchors = torch.eye(4, dtype=torch.float64)[:2]
    queue = torch.eye(4, dtype=torch.float64)[2:]
    queries = torch.stack([anchors, queue]).transpose(0, 1)  # first view right, second wrong
    assert contrastive_losses(queries, anchors, queue, 0.2).top1.item() == 0.5


def test_bf16_inputs_are_accumulated_in_float32():
    queries, anchors, queue = unit(4, 5, 64), unit(4, 64, seed=1), unit(512, 64, seed=2)
    features, feature_queue = unit(4, 5, 64, seed=3), unit(512, 64, seed=4)
    rounded = [t.bfloat16() for t in (queries, anchors, queue, features, feature_queue)]
    with torch.autocast("cpu", torch.bfloat16):
        result = contrastive_losses(
            rounded[0], rounded[1], rounded[2], 0.2, features=rounded[3], feature_queue=rounded[4], k=20
        )
    exact = (rounded[3].double() @ rounded[4].double().T).topk(20).indices
    assert result.instance.dtype == torch.float32
    same = (result.neighbours.sort(-1).values == exact.sort(-1).values).float().mean()
    assert same == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queue": unit(7, 3)}, r"queries must be \(B, V, D\) and queue \(K, D\)"),
        ({"anchors": unit(3, 4)}, r"anchors must be \(B, D\) = \(2, 4\), got \(3, 4\)"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"k": 8}, "k must be between 1 and the queue's 7 slots, got 8"),
        ({"features": unit(2, 2, 5)}, r"features must be \(B, V, C\)"),
        ({"feature_queue": unit(6, 5)}, r"feature_queue must be \(K, C\) = \(7, 5\), got \(6, 5\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change, message):
    arguments = {
        "queries": unit(2, 3, 4),
        "anchors": unit(2, 4),
        "queue": unit(7, 4),
        "temperature": 0.2,
        "features": unit(2, 3, 5),
        "feature_queue": unit(7, 5),
        "k": 2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        contrastive_losses(**arguments)
