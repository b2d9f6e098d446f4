"""Gradients of the tasks' losses with respect to what the tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError

from ..models.base import DenseModel

LAYERS = ("last", "all")
_CHUNK = 1 << 20


def shared_parameters(model: DenseModel, layers: str = "last") -> list[nn.Parameter]:
    """The trained parameters of the encoder that all tasks share.

    Args:
        model: the network.
        layers: ``last``: the filters of the encoder's last block, such as the last residual block of a ResNet, the last
            module of an HRNet with all its scales, or the outputs of an FPN (cheap: the gradients of the tasks stop
            there); ``all``: everything that is shared, as MGDA is defined.

    Raises:
        UserError: the tasks share none, as in the models that only adapt an encoder.
        ValueError: other ``layers``.
    """
    if layers not in LAYERS:
        raise ValueError(f"layers='{layers}': choose {' or '.join(LAYERS)}")
    owned = {id(parameter) for task in model.tasks for parameter in model.task_parameters(task)}
    shared = [p for p in model.encoder.parameters() if p.requires_grad and id(p) not in owned]
    if not shared:
        raise UserError(
            "the tasks of this model share no trained layer, so that there are no gradients to balance; use a model "
            "with a shared encoder, or balance by losses (fixed, uniform, uncertainty, dwa, dtp, similar_losses)"
        )
    if layers == "all":
        return shared
    inside = {id(parameter) for parameter in _last_block(model.encoder, {id(p) for p in shared}).parameters()}
    last = [parameter for parameter in shared if id(parameter) in inside]
    return [parameter for parameter in last if parameter.dim() > 1] or last


def _last_block(encoder: nn.Module, shared: set[int]) -> nn.Module:
    """The last child of the encoder with shared parameters (given by id); of a chain of blocks, the last one."""
    module, found = encoder, False
    while True:
        children = [child for child in module.children() if any(id(p) in shared for p in child.parameters())]
        within = isinstance(module, nn.Sequential) or not found
        if not children or (len(children) > 1 and not within):
            return module
        found = found or len(children) > 1
        module = children[-1]


def gramian(losses: Sequence[Tensor], shared: Sequence[Tensor], world: World) -> Tensor:
    """Inner products of the tasks' gradients. The graph is kept: the step's own backward pass comes after.

    The gradients are those of the global batch: they are averaged over the processes before the products are taken
    (the mean of the processes' products, or lengths, would be larger). A collective call if there are several. It fires
    no hook of DistributedDataParallel.

    Args:
        losses: T scalars of this process.
        shared: parameters, (n numbers in all); a loss that does not depend on some has a gradient of zero there.
        world: the processes.

    Returns:
        (T, T) float64, equal on all processes; the squared lengths lie on the diagonal. float64, since differences of
        nearly parallel gradients matter and TF32 would lose them.
    """
    rows = []
    for loss in losses:
        parts = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten().float() for part in parts]))
    vectors = world.mean(torch.stack(rows))
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=vectors.device)
    for chunk in vectors.split(_CHUNK, dim=1):
        part = chunk.double()
        found += part @ part.T
    return found
