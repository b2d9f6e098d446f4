"""Instance and nearest-neighbour losses of kNN-MoCo (thesis section 7.4.3, algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ContrastiveLosses:
    """Losses of one batch, and what monitoring wants to know about them.

    Attributes:
        instance: scalar, nats; mean over the B*V queries.
        neighbour: scalar, nats; mean over the queries; 0 where k = 0.
        top1: scalar in [0, 1]: share of queries whose anchor scores above every negative. No gradient.
        neighbours: (B, V, k) int64 queue slots of the nearest neighbours, or None where k = 0.
    """

    instance: Tensor
    neighbour: Tensor
    top1: Tensor
    neighbours: Tensor | None


def info_nce(queries: Tensor, anchors: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Instance-discrimination loss of MoCo over several queries per anchor (thesis eq. 7.1, Alg. 3).

    Cross-entropy of ``[q.a, q.n_1 .. q.n_K] / temperature`` against the anchor's place.

    Args:
        queries: (B, V, D) L2-normalised embeddings of the V positive views of B images.
        anchors: (B, D) L2-normalised embeddings of the momentum encoder, no gradient.
        queue: (K, D) L2-normalised negatives.
        temperature: softmax temperature, > 0.

    Returns:
        Scalar, in nats, averaged over the B*V queries; computed in float32 (or float64 if given) whatever the
        input type.

    Raises:
        ValueError: shapes that do not belong together, or temperature <= 0.
    """
    _check(queries, queue, temperature, anchors=anchors)
    negatives = _similarities(queries, queue) / temperature
    return _instance(queries, anchors, negatives.logsumexp(dim=-1), temperature)


def nearest_neighbour_loss(
    queries: Tensor,
    queue: Tensor,
    features: Tensor,
    feature_queue: Tensor,
    k: int,
    temperature: float,
    written: Tensor | int | None = None,
) -> Tensor:
    """Pull each query towards its nearest neighbours in the queue (thesis section 7.4.3, Alg. 3).

    The neighbours N of a query q are the k queue slots whose *backbone* features are most similar (cosine) to its
    own; the loss is ``-(1/k) sum_{i in N} [q.n_i/t - log sum_{j=1..K} exp(q.n_j/t)]``. The denominator is the whole
    queue, neighbours included and the query's own anchor not. (Eq. 7.2 as printed lacks the logarithm.)

    Args:
        queries: (B, V, D) L2-normalised embeddings.
        queue: (K, D) L2-normalised embeddings of earlier anchors.
        features: (B, V, C) backbone features of the queries; normalised here. Only rank: no gradient flows back.
        feature_queue: (K, C) L2-normalised backbone features aligned with ``queue``.
        k: neighbours per query, 1 <= k <= K.
        temperature: softmax temperature, > 0.
        written: number of leading slots that hold real keys; others are never chosen as neighbours. A query with
            fewer than k written slots averages over those there are; with none its loss is 0. None: all K.

    Returns:
        Scalar, in nats, averaged over the B*V queries; float32 (or float64 if given).

    Raises:
        ValueError: shapes that do not belong together, k out of range, or temperature <= 0.
    """
    _check(queries, queue, temperature)
    _check_neighbours(queries, queue, features, feature_queue, k)
    negatives = _similarities(queries, queue) / temperature
    slots, real = _nearest(features, feature_queue, k, written)
    return _neighbour(negatives, negatives.logsumexp(dim=-1), slots, real)


def contrastive_losses(
    queries: Tensor,
    anchors: Tensor,
    queue: Tensor,
    temperature: float,
    *,
    features: Tensor | None = None,
    feature_queue: Tensor | None = None,
    k: int = 0,
    written: Tensor | int | None = None,
) -> ContrastiveLosses:
    """Both losses from one product with the queue and one log-sum-exp over it.

    Arguments as in :func:`info_nce` and :func:`nearest_neighbour_loss`; ``k = 0`` leaves the second out.
    """
    _check(queries, queue, temperature, anchors=anchors)
    negatives = _similarities(queries, queue) / temperature
    partition = negatives.logsumexp(dim=-1)
    instance = _instance(queries, anchors, partition, temperature)
    with torch.no_grad():
        positives = _positives(queries, anchors) / temperature
        top1 = (positives > negatives.amax(dim=-1)).to(partition.dtype).mean()
    if k == 0:
        return ContrastiveLosses(instance, torch.zeros_like(instance), top1, None)
    if features is None or feature_queue is None:
        raise ValueError("k > 0 needs features and feature_queue")
    _check_neighbours(queries, queue, features, feature_queue, k)
    slots, real = _nearest(features, feature_queue, k, written)
    return ContrastiveLosses(instance, _neighbour(negatives, partition, slots, real), top1, slots)


# bf16 *outputs* of these products would change a quarter of the top-20 neighbours: everything below leaves autocast.


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _similarities(queries: Tensor, queue: Tensor) -> Tensor:
    """(B, V, D), (K, D) -> (B, V, K) inner products."""
    with torch.autocast(queries.device.type, enabled=False):
        return _full(queries) @ _full(queue).T


def _positives(queries: Tensor, anchors: Tensor) -> Tensor:
    """(B, V, D), (B, D) -> (B, V) inner products."""
    return (_full(queries) * _full(anchors).unsqueeze(1)).sum(dim=-1)


def _instance(queries: Tensor, anchors: Tensor, partition: Tensor, temperature: float) -> Tensor:
    positives = _positives(queries, anchors) / temperature
    return (torch.logaddexp(positives, partition) - positives).mean()


@torch.no_grad()
def _nearest(features: Tensor, feature_queue: Tensor, k: int, written: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """Slots (B, V, k) of the nearest neighbours, and which of them hold real keys (same shape, bool)."""
    # Scaling a query does not change the order of its neighbours, but normalised values keep -inf the only extreme.
    similarity = _similarities(F.normalize(_full(features), dim=-1), feature_queue)
    if written is not None:
        slot = torch.arange(feature_queue.shape[0], device=feature_queue.device)
        similarity = similarity.masked_fill(slot >= written, -torch.inf)
    values, slots = similarity.topk(k, dim=-1)
    return slots, values > -torch.inf


def _neighbour(negatives: Tensor, partition: Tensor, slots: Tensor, real: Tensor) -> Tensor:
    terms = partition.unsqueeze(-1) - negatives.gather(-1, slots)
    weights = real.to(terms.dtype)
    return ((terms * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1)).mean()


def _check(queries: Tensor, queue: Tensor, temperature: float, anchors: Tensor | None = None) -> None:
    if queries.ndim != 3 or queue.ndim != 2 or queries.shape[-1] != queue.shape[-1]:
        raise ValueError(
            f"queries must be (B, V, D) and queue (K, D), got {tuple(queries.shape)} and {tuple(queue.shape)}"
        )
    if anchors is not None and anchors.shape != (queries.shape[0], queries.shape[2]):
        raise ValueError(f"anchors must be (B, D) = {(queries.shape[0], queries.shape[2])}, got {tuple(anchors.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _check_neighbours(queries: Tensor, queue: Tensor, features: Tensor, feature_queue: Tensor, k: int) -> None:
    if features.shape[:2] != queries.shape[:2] or features.ndim != 3:
        raise ValueError(f"features must be (B, V, C) like queries {tuple(queries.shape)}, got {tuple(features.shape)}")
    if feature_queue.shape != (queue.shape[0], features.shape[-1]):
        raise ValueError(
            f"feature_queue must be (K, C) = {(queue.shape[0], features.shape[-1])}, got {tuple(feature_queue.shape)}"
        )
    if not 1 <= k <= queue.shape[0]:
        raise ValueError(f"k must be between 1 and the queue's {queue.shape[0]} slots, got {k}")
