"""Representation Similarity Analysis: how alike two descriptions of the same items are.

Kriegeskorte et al., 2008; Dwivedi and Roig, CVPR 2019. Two descriptions need not have the same length or meaning: only
which items they find alike is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor


def dissimilarities(vectors: Tensor) -> Tensor:
    """How differently the items are described: 1 - Pearson's correlation of every pair.

    Args:
        vectors: (K, P), a description an item.

    Returns:
        (K, K) float64, symmetric, zeros on the diagonal. A constant description correlates with nothing: 1.
    """
    values = vectors.double()
    values = values - values.mean(1, keepdim=True)
    lengths = values.norm(dim=1, keepdim=True)
    unit = torch.where(lengths > 0, values / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0)
    matrix = 1 - (unit @ unit.T).clamp(-1, 1)
    return matrix.fill_diagonal_(0)


def similarity(matrices: Sequence[Tensor]) -> Tensor:
    """Spearman's correlation between the upper triangles of dissimilarity matrices of the same items.

    Args:
        matrices: N of them, each (K, K) with K of at least 3.

    Returns:
        (N, N) float64 in [-1, 1], ones on the diagonal. A matrix of one constant has no order: 0.

    Raises:
        ValueError: fewer than 3 items, or different numbers of them.
    """
    sizes = {tuple(matrix.shape) for matrix in matrices}
    if len(sizes) != 1 or min(next(iter(sizes))) < 3:
        raise ValueError(f"matrices of {sorted(sizes)}: all must have the same K x K, with K of at least 3")
    count = len(matrices[0])
    rows, columns = torch.triu_indices(count, count, offset=1)
    ranks = torch.stack([torch.from_numpy(rankdata(matrix[rows, columns].cpu().numpy())) for matrix in matrices])
    return (1 - dissimilarities(ranks)).fill_diagonal_(1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(K, P) and (K, P) -> (K,) float64: the cosine of every item's two vectors; 0 where one of them is zero."""
    first, second = first.double(), second.double()
    lengths = first.norm(dim=1) * second.norm(dim=1)
    dots = (first * second).sum(1)
    return torch.where(lengths > 0, dots / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0).clamp(-1, 1)
