"""The query encoder, its momentum twin and the queues (thesis algorithms 2 and 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyscene.runtime.distributed import World
from polyscene.ssl.views.staging import to_device

from .encoder import Encoder
from .grouped_norm import joined_groups, knows_groups
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
        return embed_in_groups(self.encoder, views, self.group)


def embed_in_groups(encoder: nn.Module, views: Sequence[Tensor], group: int) -> tuple[Tensor, Tensor]:
    """Embed views (B, V_s, 3, S, S) of each size -> features (B, V, C) and embeddings (B, V, D).

    Groups of ``group`` images, with all their views of one size, are normalised by themselves: they go through the
    encoder one after another, or together if its BatchNorm layers know groups (`group_norms`).
    """
    groups = views[0].shape[0] // group
    if groups > 1 and knows_groups(encoder):
        with joined_groups(encoder, groups):
            return _embed(encoder, views)
    parts = [_embed(encoder, part) for part in zip(*(view.split(group) for view in views))]
    if groups == 1:
        return parts[0]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _embed(encoder: nn.Module, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    outputs = [encoder(view.flatten(0, 1).contiguous(memory_format=torch.channels_last)) for view in views]
    shapes = [view.shape[:2] for view in views]
    features, embeddings = ([output[i].unflatten(0, shape) for output, shape in zip(outputs, shapes)] for i in range(2))
    return torch.cat(features, dim=1), torch.cat(embeddings, dim=1)


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
        """Embed the anchors of all processes, normalised among other images than their queries; a collective call.

        Args:
            anchors: (b, 3, S, S) anchor views of this process.
            plan: BatchNorm groups; decides whether anchors move between processes for this.
            world: the processes of the run.
            seed: of the permutation, together with ``step``.
            step: current step; every process passes the same.
            encoder: the key encoder as compiled; None: :attr:`key`.

        Returns:
            Features (world * b, C) and embeddings (world * b, D) in the order of the processes and of ``anchors``, the
            same to the bit in every process.
        """
        encoder = self.key if encoder is None else encoder
        if plan.kind == "sync":
            return _gather(_embed_anchors(encoder, anchors, plan.group), world)
        count, exchange = anchors.shape[0], plan.kind == "shuffle" and world.size > 1
        order = key_permutation(count * world.size if exchange else count, seed, step)
        chosen = order[world.rank * count :][:count] if exchange else order
        there, back = to_device([chosen, order.argsort()], anchors.device)
        pixels = anchors.permute(0, 2, 3, 1)  # as they lie in memory
        shuffled = (world.gather(pixels) if exchange else pixels).index_select(0, there).permute(0, 3, 1, 2)
        keys = _embed_anchors(encoder, shuffled, plan.group)
        if exchange:
            features, embeddings = _gather(keys, world)
            return features[back], embeddings[back]
        return _gather((keys[0][back], keys[1][back]), world)


def _gather(keys: tuple[Tensor, Tensor], world: World) -> tuple[Tensor, Tensor]:
    """Features and embeddings of all processes, in one message."""
    if world.size == 1:
        return keys
    features, embeddings = world.gather(torch.cat(keys, dim=1)).split([part.shape[1] for part in keys], dim=1)
    return features, embeddings


def _embed_anchors(encoder: nn.Module, anchors: Tensor, group: int) -> tuple[Tensor, Tensor]:
    features, embeddings = embed_in_groups(encoder, [anchors.unsqueeze(1)], group)
    return features.squeeze(1), embeddings.squeeze(1)
