"""Numbers that tell whether representation learning is healthy."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """Spread of unit vectors (N, D): standard deviation per dimension, averaged, times sqrt(D).

    1 means evenly spread over the sphere, 0 means collapsed to a point (SimSiam, section 4.1). Scalar tensor.
    """
    return embeddings.float().std(dim=0, correction=0).mean() * math.sqrt(embeddings.shape[-1])


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Effective number of directions in which features (N, C) vary: exp of the entropy of the singular values.

    Features are centred first; the result lies between 1 and min(N - 1, C) (Roy and Vetterli, 2007). Scalar tensor.
    """
    centred = features.float() - features.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.exp(-(shares * shares.clamp(min=torch.finfo(values.dtype).tiny).log()).sum())


@torch.no_grad()
def neighbour_label_share(found: Tensor, labels: Tensor) -> Tensor:
    """Share of retrieved neighbours with the label of the image that retrieved them.

    Args:
        found: (B, V, k) labels of the neighbours, -1 where the slot was never written (not counted).
        labels: (B,) labels of the images.

    Returns:
        Scalar tensor in [0, 1]; NaN while no written slot was retrieved.
    """
    known = found >= 0
    return ((found == labels[:, None, None]) & known).sum() / known.sum()
