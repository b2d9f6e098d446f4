"""Weighted nearest-neighbour classification on frozen features (Wu et al., 2018, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def knn_predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    exclude_self: bool = False,
    chunk: int = 1024,
) -> Tensor:
    """Predict labels by a vote of the k nearest bank features, weighted by ``exp(similarity / temperature)``.

    Args:
        queries: (N, C) L2-normalised features.
        bank: (M, C) L2-normalised features.
        bank_labels: (M,) int64 labels, >= 0.
        k: voters per query; at most the size of the bank.
        temperature: of the weights, > 0.
        exclude_self: query i must not see bank item i (leave-one-out over the bank itself).
        chunk: queries per matrix product, to bound memory.

    Returns:
        (N,) int64 predicted labels; the smaller label where votes tie exactly.

    Raises:
        ValueError: empty bank, or leave-one-out over something else than the bank.
    """
    if bank.shape[0] < 1 + exclude_self:
        raise ValueError(f"a bank of {bank.shape[0]} features leaves no neighbour")
    if exclude_self and queries.shape[0] != bank.shape[0]:
        raise ValueError("leave-one-out needs the bank itself as queries")
    voters = min(k, bank.shape[0] - exclude_self)
    classes = int(bank_labels.max()) + 1
    predictions = []
    for start in range(0, queries.shape[0], chunk):
        part = queries[start : start + chunk].float()
        similarity = part @ bank.float().T
        if exclude_self:
            rows = torch.arange(part.shape[0], device=part.device)
            similarity[rows, rows + start] = -torch.inf
        values, indices = similarity.topk(voters, dim=1)
        # Subtracting the best similarity changes no vote and keeps exp() in range.
        weights = ((values - values[:, :1]) / temperature).exp()
        votes = torch.zeros(part.shape[0], classes, device=part.device, dtype=weights.dtype)
        predictions.append(votes.scatter_add_(1, bank_labels[indices], weights).argmax(dim=1))
    return torch.cat(predictions)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in [0, 1]."""
    return float((predictions == labels).float().mean())
