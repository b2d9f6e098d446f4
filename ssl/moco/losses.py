"""Instance and nearest-neighbour losses of kNN-MoCo (thesis section 7.4.3, algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .nearest import nearest_slots
from .partition import log_partition

CHUNK_BYTES = 2**28
"""For the similarities to a queue that are held at a time: all of them are 1.3 GB at 5120 queries and 65,536 slots."""


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


def info_nce(
    queries: Tensor, anchors: Tensor, queue: Tensor, temperature: float, *, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Instance-discrimination loss of MoCo over several queries per anchor (thesis eq. 7.1, Alg. 3).

    Cross-entropy of ``[q.a, q.n_1 .. q.n_K] / temperature`` against the anchor's place.

    Args:
        queries: (B, V, D) L2-normalised embeddings of the V positive views of B images.
        anchors: (B, D) L2-normalised embeddings of the momentum encoder, no gradient.
        queue: (K, D) L2-normalised negatives, constants.
        temperature: softmax temperature, > 0.
        chunk_bytes: memory for the similarities that are held at a time; less is slower, the loss is the same.

    Returns:
        Scalar, in nats, averaged over the B*V queries; computed in float32 (or float64 if given) whatever the
        input type.

    Raises:
        ValueError: shapes that do not belong together, a queue that wants a gradient, temperature or chunk_bytes <= 0.
    """
    _check(queries, queue, temperature, chunk_bytes, anchors=anchors)
    scaled = _full(queries) / temperature
    partition, _ = _partition(scaled, queue, chunk_bytes)
    return _instance(_positives(scaled, anchors), partition)


def nearest_neighbour_loss(
    queries: Tensor,
    queue: Tensor,
    features: Tensor,
    feature_queue: Tensor,
    k: int,
    temperature: float,
    written: Tensor | int | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Pull each query towards its nearest neighbours in the queue (thesis section 7.4.3, Alg. 3).

    The neighbours N of a query q are the k queue slots whose *backbone* features are most similar (cosine) to its
    own; the loss is ``-(1/k) sum_{i in N} [q.n_i/t - log sum_{j=1..K} exp(q.n_j/t)]``. The denominator is the whole
    queue, neighbours included and the query's own anchor not. (Eq. 7.2 as printed lacks the logarithm.)

    Args:
        queries: (B, V, D) L2-normalised embeddings.
        queue: (K, D) L2-normalised embeddings of earlier anchors, constants.
        features: (B, V, C) backbone features of the queries; normalised here. Only rank: no gradient flows back.
        feature_queue: (K, C) L2-normalised backbone features aligned with ``queue``.
        k: neighbours per query, 1 <= k <= K.
        temperature: softmax temperature, > 0.
        written: number of leading slots that hold real keys; others are never chosen as neighbours. A query with
            fewer than k written slots averages over those there are; with none its loss is 0. None: all K.
        chunk_bytes: as in :func:`info_nce`.

    Returns:
        Scalar, in nats, averaged over the B*V queries; float32 (or float64 if given).

    Raises:
        ValueError: as :func:`info_nce`, and k out of range.
    """
    _check(queries, queue, temperature, chunk_bytes)
    _check_neighbours(queries, queue, features, feature_queue, k)
    scaled = _full(queries) / temperature
    slots, real = _nearest(features, feature_queue, k, written, chunk_bytes)
    partition, _ = _partition(scaled, queue, chunk_bytes)
    return _neighbour(scaled, partition, queue, slots, real)


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
    chunk_bytes: int = CHUNK_BYTES,
) -> ContrastiveLosses:
    """Both losses from one product with the queue and one log-sum-exp over it.

    Arguments as in :func:`info_nce` and :func:`nearest_neighbour_loss`; ``k = 0`` leaves the second out.
    """
    _check(queries, queue, temperature, chunk_bytes, anchors=anchors)
    if k:
        if features is None or feature_queue is None:
            raise ValueError("k > 0 needs features and feature_queue")
        _check_neighbours(queries, queue, features, feature_queue, k)
    scaled = _full(queries) / temperature
    partition, largest = _partition(scaled, queue, chunk_bytes)
    positives = _positives(scaled, anchors)
    instance = _instance(positives, partition)
    top1 = (positives.detach() > largest).to(partition.dtype).mean()
    if features is None or feature_queue is None or k == 0:
        return ContrastiveLosses(instance, torch.zeros_like(instance), top1, None)
    slots, real = _nearest(features, feature_queue, k, written, chunk_bytes)
    return ContrastiveLosses(instance, _neighbour(scaled, partition, queue, slots, real), top1, slots)


# bf16 *outputs* of the products would change a quarter of the top-20 neighbours: both leave autocast.


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _partition(scaled: Tensor, queue: Tensor, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the negatives' logits of every query, and the largest of them: (B, V) each."""
    with torch.autocast(scaled.device.type, enabled=False):
        partition, largest = log_partition(scaled.flatten(0, 1), _full(queue), chunk_bytes)
    return partition.view(scaled.shape[:2]), largest.view(scaled.shape[:2])


def _positives(scaled: Tensor, anchors: Tensor) -> Tensor:
    """(B, V, D), (B, D) -> (B, V) logits of the anchors."""
    return (scaled * _full(anchors).unsqueeze(1)).sum(dim=-1)


def _instance(positives: Tensor, partition: Tensor) -> Tensor:
    return (torch.logaddexp(positives, partition) - positives).mean()


@torch.no_grad()
def _nearest(
    features: Tensor, feature_queue: Tensor, k: int, written: Tensor | int | None, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """Slots (B, V, k) of the nearest neighbours, and which of them hold real keys (same shape, bool)."""
    # Scaling a query does not change the order of its neighbours, but normalised values keep -inf the only extreme.
    directions = F.normalize(_full(features).flatten(0, 1), dim=-1)
    with torch.autocast(features.device.type, enabled=False):
        slots, real = nearest_slots(directions, feature_queue, k, written, chunk_bytes)
    return slots.view(*features.shape[:2], k), real.view(*features.shape[:2], k)


def _neighbour(scaled: Tensor, partition: Tensor, queue: Tensor, slots: Tensor, real: Tensor) -> Tensor:
    with torch.no_grad():
        weights = real.to(scaled.dtype) / real.sum(dim=-1, keepdim=True).clamp(min=1)
        # The mean logit of the neighbours is the logit of their mean.
        mean = F.embedding_bag(
            slots.flatten(0, 1), _full(queue), mode="sum", per_sample_weights=weights.flatten(0, 1)
        ).view_as(scaled)
        found = real.any(dim=-1)
    return (partition * found - (scaled * mean).sum(dim=-1)).mean()


def _check(queries: Tensor, queue: Tensor, temperature: float, chunk_bytes: int, anchors: Tensor | None = None) -> None:
    if queries.ndim != 3 or queue.ndim != 2 or queries.shape[-1] != queue.shape[-1]:
        raise ValueError(
            f"queries must be (B, V, D) and queue (K, D), got {tuple(queries.shape)} and {tuple(queue.shape)}"
        )
    if anchors is not None and anchors.shape != (queries.shape[0], queries.shape[2]):
        raise ValueError(f"anchors must be (B, D) = {(queries.shape[0], queries.shape[2])}, got {tuple(anchors.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be > 0, got {chunk_bytes}")
    if queue.requires_grad:
        raise ValueError("the queue is a constant of these losses and gets no gradient: pass queue.detach()")


def _check_neighbours(queries: Tensor, queue: Tensor, features: Tensor, feature_queue: Tensor, k: int) -> None:
    if features.shape[:2] != queries.shape[:2] or features.ndim != 3:
        raise ValueError(f"features must be (B, V, C) like queries {tuple(queries.shape)}, got {tuple(features.shape)}")
    if feature_queue.shape != (queue.shape[0], features.shape[-1]):
        raise ValueError(
            f"feature_queue must be (K, C) = {(queue.shape[0], features.shape[-1])}, got {tuple(feature_queue.shape)}"
        )
    if not 1 <= k <= queue.shape[0]:
        raise ValueError(f"k must be between 1 and the queue's {queue.shape[0]} slots, got {k}")
