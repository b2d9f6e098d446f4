"""Nearest neighbours in a queue, without ever holding the similarities to all of it."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32
"""Slots that stand for each other in the first round of a selection."""


@torch.no_grad()
def nearest_slots(
    features: Tensor, queue: Tensor, k: int, written: Tensor | int | None, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """The k slots of the queue with the largest inner products, a part of the queue at a time.

    Args:
        features: (N, C) float32 or float64, finite.
        queue: (K, C); in whatever type, it is taken to that of ``features`` part by part.
        k: 1 <= k <= K.
        written: number of leading slots that may be chosen; None: all.
        chunk_bytes: for the similarities to a part of the queue.

    Returns:
        Slots (N, k) int64, the most similar first, and which of them were written (same shape, bool): where fewer than
        k were, the rest is made up of others.
    """
    count, size = features.shape[0], queue.shape[0]
    width = chunk_bytes // (max(1, count) * features.element_size())
    width = min(size, max(_BLOCK, width - width % _BLOCK))
    buffer = features.new_empty(count * width)
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, size, width):
        part = queue[start : start + width].to(features.dtype)
        similarity = torch.mm(features, part.T, out=buffer[: count * part.shape[0]].view(count, part.shape[0]))
        values, columns = largest(similarity, min(k, part.shape[0]), None if written is None else written - start)
        found = (values, columns + start)
        best = found if best is None else _merged(best, found, k)
    assert best is not None  # k >= 1 slots exist
    values, slots = best
    return slots, values > -torch.inf


def largest(similarity: Tensor, k: int, written: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """Largest k values of every row (N, W) and their columns, in falling order; -inf at columns from ``written`` on.

    Selecting is several passes over a row, so it is done on the maxima of blocks first: the k largest values lie in the
    k blocks with the largest maxima. ``similarity`` may be overwritten.
    """
    width = similarity.shape[1]
    # A block of which a part was written may have too large a maximum, and keep one block from its place.
    blocks = k if written is None else k + 1
    if width % _BLOCK or width < 2 * blocks * _BLOCK:
        return _masked(similarity, torch.arange(width, device=similarity.device), written).topk(k, dim=1)
    cells = similarity.unflatten(1, (-1, _BLOCK))
    starts = torch.arange(0, width, _BLOCK, device=similarity.device)
    chosen = _masked(cells.amax(dim=2), starts, written).topk(blocks, dim=1, sorted=False).indices
    candidates = cells.gather(1, chosen.unsqueeze(2).expand(-1, -1, _BLOCK))
    columns = _BLOCK * chosen.unsqueeze(2) + torch.arange(_BLOCK, device=similarity.device)
    values, order = _masked(candidates, columns, written).flatten(1).topk(k, dim=1)
    return values, columns.flatten(1).gather(1, order)


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Values (N, up to k) and slots, the best of both."""
    values, slots = (torch.cat(pair, dim=1) for pair in zip(one, other))
    values, order = values.topk(min(k, values.shape[1]), dim=1)
    return values, slots.gather(1, order)


def _masked(values: Tensor, columns: Tensor, written: Tensor | int | None) -> Tensor:
    return values if written is None else values.masked_fill_(columns >= written, -torch.inf)
