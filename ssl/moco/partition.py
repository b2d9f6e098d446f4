"""Log-sum-exp of the similarities of queries to a queue, without ever holding all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_partition(queries: Tensor, queue: Tensor, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """``log sum_j exp(q . n_j)`` and ``max_j q . n_j`` of every query, a few queries at a time.

    The gradient of the first, ``sum_j softmax(q . n)_j n_j``, is taken in the same pass, while the exponentials of a
    chunk are at hand: they are neither kept for the backward pass nor computed again in it. What is kept is (N, D).

    Args:
        queries: (N, D) float32 or float64, divided by the temperature already.
        queue: (K, D) of the same type; a constant. It is read now and never again: it may change before the backward
            pass.
        chunk_bytes: for the similarities of a chunk, which has at least one query.

    Returns:
        Log-sum-exp (N,), which has a (first) derivative by the queries, and largest similarity (N,), which has none.
    """
    rows = max(1, chunk_bytes // (queue.shape[0] * queries.element_size()))
    if torch.is_grad_enabled() and queries.requires_grad:
        return _LogPartition.apply(queries, queue, rows)
    return _stream(queries.detach(), queue, rows, None)


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, queue: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(queries)
        partition, largest = _stream(queries, queue, rows, gradient)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(largest)
        return partition, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_partition: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return of_partition.unsqueeze(1) * gradient, None, None


def _stream(queries: Tensor, queue: Tensor, rows: int, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and maximum of ``rows`` queries at a time; ``gradient`` (N, D), if any, is filled."""
    count = queries.shape[0]
    partition, largest = queries.new_empty(count), queries.new_empty(count)
    # One buffer for all chunks, worked on in place: new memory costs a CPU as much time as the exponentials.
    buffer = queries.new_empty(min(rows, count), queue.shape[0])
    for start in range(0, count, rows):
        chunk = slice(start, start + rows)
        weights = torch.mm(queries[chunk], queue.T, out=buffer[: min(rows, count - start)])
        top = torch.amax(weights, dim=1, out=largest[chunk])
        total = weights.sub_(top.unsqueeze(1)).exp_().sum(dim=1)
        torch.add(top, total.log(), out=partition[chunk])
        if gradient is not None:
            torch.mm(weights, queue, out=gradient[chunk]).div_(total.unsqueeze(1))
    return partition, largest
