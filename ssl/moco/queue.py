"""Two aligned queues of past keys: embeddings and backbone features (thesis section 7.4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """Fixed-size first-in-first-out memory of keys, as buffers, written without host synchronisation.

    Slots are written round robin, modulo the queue's size, for any batch size; a batch larger than the queue leaves
    its last K keys. The memory starts with random unit vectors; :attr:`written` tells how many leading slots hold
    real keys.

    Args:
        size: number of slots K.
        dim: embedding width D.
        feature_dim: backbone feature width C.
        labels: also remember a label a key, for monitoring only.
        generator: source of the initial vectors; None: torch's global one.

    Attributes:
        embeddings: (K, D) float32, L2-normalised.
        features: (K, C) float32, L2-normalised; slot i belongs to the same image as ``embeddings[i]``.
        pointer: () int64, the next slot to be written.
        written: () int64, slots written so far, at most K.
        stamps: (K,) int64, the step at which each slot was written, -1 for never.
        labels: (K,) int64, -1 where unknown; only with ``labels=True``.
    """

    def __init__(
        self, size: int, dim: int, feature_dim: int, *, labels: bool = False, generator: torch.Generator | None = None
    ):
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue needs at least one slot, got {size}")
        self.register_buffer("embeddings", _unit_vectors(size, dim, generator))
        self.register_buffer("features", _unit_vectors(size, feature_dim, generator))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stamps", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64) if labels else None)

    @property
    def size(self) -> int:
        """Number of slots K."""
        return self.embeddings.shape[0]

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, features: Tensor, *, step: int, labels: Tensor | None = None) -> None:
        """Write a batch of keys over the oldest slots.

        Every process must pass the same keys in the same order (gathered), so that all copies stay bitwise equal.

        Args:
            embeddings: (B, D) L2-normalised keys.
            features: (B, C) L2-normalised backbone features of the same images.
            step: current optimiser step, remembered for :meth:`mean_age`.
            labels: (B,) int64; ignored by a queue without labels.
        """
        count = embeddings.shape[0]
        if features.shape[0] != count:
            raise ValueError(f"{count} embeddings but {features.shape[0]} features")
        kept = min(count, self.size)  # keys that a larger batch would overwrite at once
        slots = (self.pointer + torch.arange(count - kept, count, device=self.pointer.device)) % self.size
        self.embeddings.index_copy_(0, slots, embeddings[-kept:].to(self.embeddings.dtype))
        self.features.index_copy_(0, slots, features[-kept:].to(self.features.dtype))
        self.stamps.index_fill_(0, slots, step)
        if self.labels is not None and labels is not None:
            self.labels.index_copy_(0, slots, labels[-kept:].to(self.labels.device))
        self.pointer.add_(count).remainder_(self.size)
        self.written.add_(count).clamp_(max=self.size)

    def labels_of(self, slots: Tensor) -> Tensor | None:
        """Labels of the keys in the given slots, in the same shape, as they are now; None for a queue without labels.

        To be called before :meth:`enqueue` writes other keys there.
        """
        return None if self.labels is None else self.labels[slots]

    @torch.no_grad()
    def mean_age(self, step: int) -> Tensor:
        """Mean number of steps since the written slots were written, as a scalar tensor; 0 for an empty queue."""
        age = torch.where(self.stamps >= 0, step - self.stamps, 0)
        return age.sum() / self.written.clamp(min=1)


def _unit_vectors(count: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Random directions (count, width), in the memory that was drawn into: the features of a full queue are 0.5 GB."""
    vectors = torch.randn(count, width, generator=generator)
    return F.normalize(vectors, dim=1, out=vectors)
