"""One optimiser step of kNN-MoCo, for any number of processes and accumulation passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyscene.runtime.batch_norm import synchronise
from polyscene.runtime.data_parallel import data_parallel
from polyscene.runtime.distributed import World
from polyscene.runtime.finite import FiniteCheck

from .moco.grouped_norm import group_norms
from .moco.losses import ContrastiveLosses, contrastive_losses
from .moco.model import MoCo, MultiViewEncoder
from .moco.normalization import NormPlan
from .moco.small_maps import convolve_small_maps


@dataclass(frozen=True)
class LossSettings:
    """What a step optimises.

    Attributes:
        temperature: of both softmaxes.
        k: neighbours per query; 0 switches the neighbour loss off.
        neighbour_weight: lambda.
        neighbour_start: first step with the neighbour loss.
    """

    temperature: float = 0.2
    k: int = 20
    neighbour_weight: float = 0.4
    neighbour_start: int = 0


@dataclass
class StepOutput:
    """What a step leaves for logging; tensors stay on the device.

    Attributes:
        means: (4,) loss, instance loss, neighbour loss, top-1 of the instance task.
        embeddings: (b, D) embeddings of the first query view of this process.
        features: (b, C) backbone features of the same.
        neighbours: (b, V, k) queue slots of the neighbours, or None without neighbour loss. Like the others it covers
            the first accumulation pass only.
        neighbour_labels: (b, V, k) labels of the neighbours, -1 for a slot that was never written; None without
            neighbours or without labels in the queue.
    """

    means: Tensor
    embeddings: Tensor
    features: Tensor
    neighbours: Tensor | None
    neighbour_labels: Tensor | None


class StepRunner:
    """Runs the steps of algorithm 3 in the right order.

    (1) The key encoder moves towards the weights from before the step. (2) Queries are embedded. (3) Keys are embedded
    without gradient. (4) Both losses are taken against the queue *before* this batch is written. (5) Backward and
    update. (6) The keys of all processes are written.

    Args:
        model: on its device.
        optimizer: over the query encoder's parameters.
        losses: what to optimise.
        norm: BatchNorm groups of the per-process, per-pass batch.
        world: the processes of the run.
        seed: of the key permutations.
        precision: ``bf16`` runs the encoders under autocast.
        accumulate: forward/backward passes per step; divides the per-process batch.
        compile: torch.compile the encoders.

    Attributes:
        on_nonfinite: called with the step and its loss as soon as a loss is known not to be finite; must raise. On the
            CPU that is before the weights change; on a GPU one step later, so that the device never waits.
    """

    def __init__(
        self,
        model: MoCo,
        optimizer: torch.optim.Optimizer,
        losses: LossSettings,
        norm: NormPlan,
        world: World,
        *,
        seed: int,
        precision: str = "fp32",
        accumulate: int = 1,
        compile: bool = False,
    ):
        self.model, self.optimizer, self.losses, self.norm, self.world = model, optimizer, losses, norm, world
        self.seed, self.precision, self.accumulate = seed, precision, accumulate
        if norm.kind == "sync":
            synchronise(model, world.device)
        if world.device.type == "cpu" and not compile:
            # On a GPU a group fills the device by itself, and joining groups would copy every map.
            group_norms(model)
            convolve_small_maps(model)
        torch.backends.cudnn.benchmark = True  # shapes never change: its algorithms are tried once
        # Two sizes of views are two graphs: one for all sizes would be slower.
        query: nn.Module = torch.compile(model.query, dynamic=False) if compile else model.query
        self._key: nn.Module = torch.compile(model.key, dynamic=False) if compile else model.key
        self._query = data_parallel(MultiViewEncoder(query, norm.group), world)
        self.on_nonfinite: Callable[[int, Tensor], None] = _raise_nonfinite
        self._finite = FiniteCheck(world, lambda step, loss: self.on_nonfinite(step, loss))

    def step(
        self, views: Sequence[Tensor], *, step: int, learning_rate: float, labels: Tensor | None = None
    ) -> StepOutput:
        """One update from the rendered views of this process.

        Args:
            views: ``[(b, n_large, 3, S, S)]`` or ``[large, (b, n_small, 3, s, s)]``; large crop 1 is the anchor.
            step: optimiser steps done before this one.
            learning_rate: of this step.
            labels: (b,) labels for monitoring the queue, if it keeps any.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        self.model.update_key_encoder()
        passes = [self._accumulate(part, index, step) for index, part in enumerate(self._split(views))]
        means = torch.stack([p[0] for p in passes]).mean(dim=0)
        self._finite.check(means[0], step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        embeddings, features, neighbours = passes[0][1]
        neighbour_labels = None if neighbours is None else self.model.queue.labels_of(neighbours)
        for index, (_, _, keys) in enumerate(passes):
            shown = None if labels is None else self.world.gather(labels.chunk(self.accumulate)[index])
            self.model.queue.enqueue(keys[1], keys[0], step=step, labels=shown)
        return StepOutput(means, embeddings, features, neighbours, neighbour_labels)

    def settle(self) -> None:
        """Make sure that every step so far had a finite loss; to be called before the weights are saved."""
        self._finite.settle()

    def _split(self, views: Sequence[Tensor]) -> list[list[Tensor]]:
        size = views[0].shape[0] // self.accumulate
        return [list(part) for part in zip(*(view.split(size) for view in views))]

    def _accumulate(
        self, views: list[Tensor], index: int, step: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        """One forward and backward pass: metric means, what is kept for monitoring, and the keys."""
        last = index == self.accumulate - 1
        postpone = self._query.no_sync() if self.world.size > 1 and not last else nullcontext()
        with postpone:
            losses, queries, features, keys = self._forward(views, index, step)
            total = losses.instance + self.losses.neighbour_weight * losses.neighbour
            (total / self.accumulate).backward()
        means = torch.stack([total, losses.instance, losses.neighbour, losses.top1]).detach()
        return means, (queries[:, 0].detach(), features[:, 0].detach(), losses.neighbours), keys

    def _forward(
        self, views: list[Tensor], index: int, step: int
    ) -> tuple[ContrastiveLosses, Tensor, Tensor, tuple[Tensor, Tensor]]:
        large, *small = views
        # Crop 1 is the anchor: the key encoder sees it and nothing else does.
        query_views = [torch.cat([large[:, :1], large[:, 2:]], dim=1) if large.shape[1] > 2 else large[:, :1], *small]
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features, queries = self._query(query_views)
            keys = self.model.embed_keys(
                large[:, 1],
                self.norm,
                self.world,
                seed=self.seed,
                step=step * self.accumulate + index,
                encoder=self._key,
            )
        queue = self.model.queue
        own = keys[1].chunk(self.world.size)[self.world.rank]
        losses = contrastive_losses(
            queries,
            own,
            queue.embeddings,
            self.losses.temperature,
            features=features,
            feature_queue=queue.features,
            k=self.losses.k if step >= self.losses.neighbour_start else 0,
            written=queue.written,
        )
        return losses, queries, features, keys


def _raise_nonfinite(step: int, loss: Tensor) -> None:
    raise FloatingPointError(f"loss is {loss.item()} at step {step}")
