"""The weights of one training step, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyscene.runtime.distributed import World

from .base import Balancer
from .gradients import gramian


def step_weights(
    balancer: Balancer, losses: Sequence[Tensor], shared: Sequence[Tensor], world: World, kpis: Tensor | None = None
) -> Tensor:
    """Average over the processes what the strategy needs, and ask it for its weights, equal on all processes.

    To be called once a step, before the backward pass.

    Args:
        balancer: on the device of the losses.
        losses: T scalars of this process, in the order of ``balancer.tasks``; their mean over the processes must be the
            loss of the global batch.
        shared: parameters for gradients (:func:`.gradients.shared_parameters`); not looked at where none are needed.
        world: the processes.
        kpis: (T,) of the global batch; for strategies that need them.

    Returns:
        (T,) float32 without gradient. The step minimises ``sum_i weights_i * losses_i``.
    """
    values = torch.stack([loss.detach().float() for loss in losses])
    if balancer.needs_losses:
        values = world.mean(values)
    products = gramian(losses, shared, world) if balancer.needs_gradients else None
    return balancer.weigh(values, products, kpis)
