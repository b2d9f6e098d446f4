"""One optimiser step of a multi-task model, for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from polyscene.runtime.batch_norm import synchronise
from polyscene.runtime.data_parallel import data_parallel
from polyscene.runtime.distributed import World
from polyscene.runtime.features import normalise
from polyscene.runtime.finite import FiniteCheck

from .balancing.base import Balancer
from .balancing.gradients import shared_parameters
from .balancing.kpis import batch_kpis, check_kpis
from .balancing.weighing import step_weights
from .data.transforms import Batch
from .models.base import DenseModel, Outputs
from .tasks.spec import Target, TaskSpec

TaskLosses = tuple[list[Tensor], list[Tensor]]
"""Losses of a task's final output (one or none) and of its deep outputs."""


class StepLosses(NamedTuple):
    """The losses of a step; scalars that stay on the device.

    With several processes, their means over the processes are the losses of the global batch.

    Attributes:
        total: what was minimised: the weighted sum over tasks and over all outputs, deep ones too.
        tasks: task -> loss of its final output, without its weight; of an auxiliary task that has none, the mean over
            its deep outputs.
        weights: task -> weight of its losses in this step.
    """

    total: Tensor
    tasks: dict[str, Tensor]
    weights: dict[str, Tensor]


class DenseStep:
    """Runs forward pass, losses, backward pass and update.

    The total loss is the sum over tasks of weight times loss, over the final and all deep outputs (thesis, equation
    5.2). Losses are taken in float32, at the size of the labels, also under autocast. What a balancer weighs is the sum
    of all losses of a task.

    BatchNorm: every process normalises its own part of the batch, as in the published training on one GPU with
    smaller batches, and has its own running statistics, which are averaged for evaluation and export
    (`polyscene.runtime.batch_norm.averaged_statistics`). ``sync_batch_norm`` normalises over all processes instead.

    Args:
        model: on its device. What asks for a gradient is trained.
        optimizer: over those parameters.
        specs: task -> what it is; all tasks of the outputs, auxiliary ones too.
        balancer: weighs the losses of the tasks; on the model's device, for the tasks of ``specs`` in their order.
        world: the processes of the run.
        tasks: whose final outputs are trained; None: all of ``specs``. Every trained parameter must take part.
        shared_layers: for balancers that need gradients, see :func:`.balancing.gradients.shared_parameters`.
        precision: ``bf16`` runs the model under autocast.
        sync_batch_norm: BatchNorm over the batches of all processes; on CPUs too. No effect on one process.

    Attributes:
        on_nonfinite: called with the step and its loss as soon as a loss is known not to be finite; must raise. On the
            CPU that is before the weights change; on a GPU one step later, so that the device never waits.

    Raises:
        UserError: the balancer needs what the model or its tasks do not have.
        ValueError: the balancer is of other tasks.
    """

    def __init__(
        self,
        model: DenseModel,
        optimizer: torch.optim.Optimizer,
        specs: Mapping[str, TaskSpec],
        balancer: Balancer,
        world: World,
        *,
        tasks: Sequence[str] | None = None,
        shared_layers: str = "last",
        precision: str = "fp32",
        sync_batch_norm: bool = False,
    ):
        self.model, self.optimizer, self.specs, self.world = model, optimizer, specs, world
        if balancer.tasks != tuple(specs):
            raise ValueError(f"a balancer of {', '.join(balancer.tasks)} for the tasks {', '.join(specs)}")
        if balancer.needs_kpis:
            check_kpis(specs)
        self.balancer = balancer
        self.shared = shared_parameters(model, shared_layers) if balancer.needs_gradients else []
        self.tasks = tuple(specs if tasks is None else tasks)
        self.precision = precision
        if sync_batch_norm and world.size > 1:
            synchronise(model, world.device)
        self._forward = data_parallel(model, world)
        self.on_nonfinite: Callable[[int, Tensor], None] = _raise_nonfinite
        self._finite = FiniteCheck(world, lambda step, loss: self.on_nonfinite(step, loss))

    def step(self, batch: Batch, *, step: int, learning_rate: float) -> StepLosses:
        """One update from this process's part of the batch, which is on the model's device.

        Args:
            batch: uint8 images and targets of one size.
            step: optimiser steps done before this one.
            learning_rate: of this step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        images = normalise(batch.images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            outputs = self._forward(images, self.tasks)
        losses = task_losses(outputs, batch.targets, self.specs, self._shares(batch.targets))
        weights = self._weights(losses, outputs, batch.targets)
        total = weighted_sum(losses, weights)
        total.backward()
        self._finite.check(total.detach(), step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        shown = {name: final[0] if final else torch.stack(deep).mean() for name, (final, deep) in losses.items()}
        return StepLosses(total.detach(), {name: loss.detach() for name, loss in shown.items()}, weights)

    def settle(self) -> None:
        """Make sure that every step so far had a finite loss; to be called before the weights are saved."""
        self._finite.settle()

    def _weights(
        self, losses: Mapping[str, TaskLosses], outputs: Outputs, targets: Mapping[str, Target]
    ) -> dict[str, Tensor]:
        """Task -> its weight in this step, equal on all processes."""
        sums = [torch.stack([*losses[name][0], *losses[name][1]]).sum() for name in self.specs]
        kpis = None
        if self.balancer.needs_kpis:
            kpis = batch_kpis(outputs, targets, self.specs, tuple(self.specs), self.world)
        weights = step_weights(self.balancer, sums, self.shared, self.world, kpis)
        return dict(zip(self.specs, weights.unbind()))

    def _shares(self, targets: Mapping[str, Target]) -> dict[str, Tensor]:
        """Task -> how much more of the valid pixels this process has than the processes' average.

        A loss is a mean over valid pixels. Weighted so, the mean over the processes is the mean over all their pixels.
        """
        if self.world.size == 1:
            return {}
        counts = torch.stack([targets[name].valid.sum() for name in self.specs]).float()
        return dict(zip(self.specs, counts / self.world.mean(counts).clamp(min=1e-6)))


def task_losses(
    outputs: Outputs,
    targets: Mapping[str, Target],
    specs: Mapping[str, TaskSpec],
    shares: Mapping[str, Tensor] | None = None,
) -> dict[str, TaskLosses]:
    """Task -> losses (scalars) of its final output (one or none) and of its deep outputs, in this order.

    Args:
        outputs: of the model, (N, channels, h, w) each; resized (bilinear) to the labels where they differ.
        targets: task -> batched target.
        specs: task -> what it is.
        shares: task -> factor of its losses; 1 where absent.
    """
    shares = shares or {}
    found: dict[str, TaskLosses] = {}
    for level, maps in enumerate((outputs.final, *outputs.deep)):
        for name, output in maps.items():
            values, valid = targets[name]
            loss = specs[name].loss(resized(output.float(), valid.shape[-2:]), values, valid)
            found.setdefault(name, ([], []))[min(level, 1)].append(loss * shares[name] if name in shares else loss)
    return found


def weighted_sum(losses: Mapping[str, TaskLosses], weights: Mapping[str, float | Tensor]) -> Tensor:
    """The sum over tasks of weight times all its losses: the scalar that is minimised."""
    return torch.stack(
        [weights[name] * loss for name, parts in losses.items() for part in parts for loss in part]
    ).sum()


def resized(output: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear; itself where the size is right."""
    if tuple(output.shape[-2:]) == tuple(size):
        return output
    return F.interpolate(output, tuple(size), mode="bilinear", align_corners=False)


def _raise_nonfinite(step: int, loss: Tensor) -> None:
    raise FloatingPointError(f"loss is {loss.item()} at step {step}")
