"""kNN probe: classify held-out images by their nearest labelled neighbours in frozen feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from polyscene.runtime.knn import knn_predict


def knn_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, *, k: int, temperature: float, device: torch.device
) -> Tensor:
    """Classes of the test features by a weighted vote of the nearest training features (Wu et al., 2018, section 3.4).

    Args:
        train: (N, C) L2-normalised features that vote.
        train_labels: (N,) int64.
        test: (M, C) L2-normalised features.
        k: neighbours that vote.
        temperature: of their weights, ``exp(similarity / temperature)``.
        device: where to compute.

    Returns:
        (M,) int64 on the CPU.
    """
    bank, labels = train.to(device), train_labels.to(device)
    # At most 2^27 similarities at once, whatever the size of the bank.
    rows = max(1, 2**27 // len(bank))
    parts = [
        knn_predict(part.to(device), bank, labels, k=k, temperature=temperature).cpu() for part in test.split(rows)
    ]
    return torch.cat(parts)
