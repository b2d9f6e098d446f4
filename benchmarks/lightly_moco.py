"""The training step of the recipe built from lightly's parts: what `step.py` compares with.

lightly's MoCo-v2 example is taken as it is published: `MoCoProjectionHead`, `deactivate_requires_grad` on deep copies,
`update_momentum` of backbone and head, `batch_shuffle` around the momentum encoder, `NTXentLoss` with a memory bank,
SGD, a forward pass for each view. What the example lacks is added in the plainest way:

- small crops are further queries, each with a forward pass and a loss of its own, which are averaged;
- for the neighbour loss lightly's `MemoryBankModule` also keeps backbone features; the nearest k of every query are the
  targets, 1/k each, of a cross-entropy over the logits with the embeddings' bank;
- the banks are written once a step, after the losses: lightly's loss by itself would write the keys once for each query
  and count them as negatives of the queries that follow. The bank for the neighbours is read once a step, not once for
  each query.

With bf16 everything but the backward pass is under autocast, as Lightning does it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from polyscene.ssl.moco.model import MoCo


class WrittenOnRequest(MemoryBankModule):
    """lightly's memory bank, which reading does not change."""

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False):
        """``output`` and a copy of the bank, (width, slots)."""
        return super().forward(output, labels, update=False)

    def write(self, keys: Tensor) -> None:
        """Put keys (B, width) over the oldest slots."""
        self._dequeue_and_enqueue(keys)


class LightlyMoCo(nn.Module):
    """The example's model, with the banks of the loss.

    Args:
        like: whose weights and queues it starts from.
        temperature: of both losses.
        k: neighbours.
        neighbour_weight: of the neighbour loss.
        precision: fp32 or bf16.
        layout: memory format of weights and images.
    """

    def __init__(
        self,
        like: MoCo,
        *,
        temperature: float,
        k: int,
        neighbour_weight: float,
        precision: str,
        layout: torch.memory_format,
    ):
        super().__init__()
        width, dim = like.query.feature_dim, like.queue.embeddings.shape[1]
        self.backbone = copy.deepcopy(like.query.backbone)
        self.projection_head = MoCoProjectionHead(width, width, dim)
        with torch.no_grad():
            for own, other in zip(self.projection_head.parameters(), like.query.head.parameters(), strict=True):
                own.copy_(other)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=temperature, memory_bank_size=tuple(like.queue.embeddings.shape))
        self.criterion.memory_bank = WrittenOnRequest(tuple(like.queue.embeddings.shape))
        self.feature_bank = WrittenOnRequest(tuple(like.queue.features.shape))
        self.criterion.memory_bank.bank.copy_(like.queue.embeddings)
        self.feature_bank.bank.copy_(like.queue.features)
        self.momentum, self.k, self.neighbour_weight = like.momentum, k, neighbour_weight
        self.precision, self.layout = precision, layout
        self.to(like.queue.embeddings.device, memory_format=layout)
        self.train()

    def step(self, views: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
        """One training step from ``[(B, 2, 3, S, S), (B, n, 3, s, s)]``, large crop 1 the anchor; returns the loss."""
        self.move_momentum_encoder()
        large, small = views
        with torch.autocast(large.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            queries = self.embed_queries([large[:, 0], *small.unbind(1)])
            keys = self.embed_keys(large[:, 1])
            loss = self.losses(queries, keys)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        self.write_banks(keys)
        return loss.detach()

    def move_momentum_encoder(self) -> None:
        """As the example does."""
        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)

    def embed_queries(self, views: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Features and projections of each view."""
        found = []
        for view in views:
            features = self.backbone(view.contiguous(memory_format=self.layout)).flatten(start_dim=1)
            found.append((features, self.projection_head(features)))
        return found

    @torch.no_grad()
    def embed_keys(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Features and projections of the anchors."""
        shuffled, shuffle = batch_shuffle(anchors.contiguous(memory_format=self.layout))
        features = self.backbone_momentum(shuffled).flatten(start_dim=1)
        keys = self.projection_head_momentum(features)
        return batch_unshuffle(features, shuffle), batch_unshuffle(keys, shuffle)

    def losses(self, queries: Sequence[tuple[Tensor, Tensor]], keys: tuple[Tensor, Tensor]) -> Tensor:
        """Instance loss and weighted neighbour loss, averaged over the queries."""
        _, negatives = self.criterion.memory_bank(keys[1])
        _, bank = self.feature_bank(keys[0])
        total = torch.zeros((), device=keys[0].device)
        for features, projections in queries:
            instance = self.criterion(projections, keys[1])
            similarity = F.normalize(features.detach(), dim=1) @ bank
            logits = F.normalize(projections, dim=1) @ negatives / self.criterion.temperature
            nearest = similarity.topk(self.k, dim=1).indices
            targets = torch.zeros_like(logits).scatter_(1, nearest, 1 / self.k)
            total = total + instance + self.neighbour_weight * F.cross_entropy(logits, targets)
        return total / len(queries)

    @torch.no_grad()
    def write_banks(self, keys: tuple[Tensor, Tensor]) -> None:
        """Keys, normalised, over the oldest slots."""
        self.feature_bank.write(F.normalize(keys[0].float(), dim=1))
        self.criterion.memory_bank.write(F.normalize(keys[1].float(), dim=1))
