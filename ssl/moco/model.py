"""The query encoder, its momentum twin and the queues (thesis algorithms 2 and 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyscene.runtime.distributed import World

from .encoder import Encoder
from .normalization import NormPlan, key_permutation
from .queue import KeyQueue


class MultiViewEncoder(nn.Module):
    """Embeds all query views of a batch in one call, group by group, so that it can be wrapped as one module.

    Args:
        encoder: the query encoder.
        group: images per BatchNorm group; all views of one size of these images are normalised together.
    """

    def __init__(self, encoder: nn.Module, group: int):
        super().__init__()
        self.encoder = encoder
        self.group = group

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Views of one batch -> features (B, V, C) and embeddings (B, V, D), in the order of the views.

        Args:
            views: one tensor (B, V_s, 3, S, S) for each size of view; V = sum of V_s.
        """
        features: list[Tensor] = []
        embeddings: list[Tensor] = []
        for start in range(0, views[0].shape[0], self.group):
            outputs = [self._embed(view[start : start + self.group]) for view in views]
            features.append(torch.cat([o[0] for o in outputs], dim=1))
            embeddings.append(torch.cat([o[1] for o in outputs], dim=1))
        return torch.cat(features), torch.cat(embeddings)

    def _embed(self, view: Tensor) -> tuple[Tensor, Tensor]:
        features, embeddings = self.encoder(_channels_last(view.flatten(0, 1)))
        shape = view.shape[:2]
        return features.unflatten(0, shape), embeddings.unflatten(0, shape)


class MoCo(nn.Module):
    """Momentum contrast with two aligned queues.

    Attributes:
        query: the trained encoder.
        key: its exponential moving average; receives no gradient and keeps its own BatchNorm statistics.
        queue: past keys.

    Args:
        query: a freshly initialised encoder.
        queue: memory whose widths fit the encoder.
        momentum: m of ``key = m * key + (1 - m) * query``.
    """

    def __init__(self, query: Encoder, queue: KeyQueue, momentum: float):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.query = query
        self.key = copy.deepcopy(query).requires_grad_(False)
        self.queue = queue
        self.momentum = momentum

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Move the key encoder's parameters towards the query encoder's, in float32; buffers stay its own."""
        keys = list(self.key.parameters())
        torch._foreach_lerp_(keys, list(self.query.parameters()), 1 - self.momentum)

    @torch.no_grad()
    def embed_keys(
        self,
        anchors: Tensor,
        plan: NormPlan,
        world: World,
        *,
        seed: int,
        step: int,
        encoder: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the anchors of this process, normalised among other images than their queries.

        Args:
            anchors: (b, 3, S, S) anchor views of this process.
            plan: BatchNorm groups; decides whether anchors move between processes for this.
            world: the processes of the run.
            seed: of the permutation, together with ``step``.
            step: current step; every process passes the same.
            encoder: the key encoder as compiled; None: :attr:`key`.

        Returns:
            Features (b, C) and embeddings (b, D) in the order of ``anchors``.
        """
        encoder = self.key if encoder is None else encoder
        if plan.kind == "sync":
            return encoder(_channels_last(anchors))
        count = anchors.shape[0]
        if plan.kind == "split" or world.size == 1:
            order = key_permutation(count, seed, step).to(anchors.device, non_blocking=True)
            parts = [encoder(_channels_last(part)) for part in anchors[order].split(plan.group)]
            back = order.argsort()
            return torch.cat([p[0] for p in parts])[back], torch.cat([p[1] for p in parts])[back]
        order = key_permutation(count * world.size, seed, step).to(anchors.device, non_blocking=True)
        mine = slice(world.rank * count, (world.rank + 1) * count)
        parts = [encoder(_channels_last(p)) for p in world.gather(anchors)[order[mine]].split(plan.group)]
        back = order.argsort()[mine]
        features = world.gather(torch.cat([p[0] for p in parts]))
        embeddings = world.gather(torch.cat([p[1] for p in parts]))
        return features[back], embeddings[back]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
