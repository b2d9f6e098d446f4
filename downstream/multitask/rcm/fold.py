"""One task of an encoder as a plain network: no task modules, no BatchNorm, no extra cost."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from polyscene.downstream.backbones import FeatureMaps
from polyscene.runtime.errors import UserError

from .encoder import TaskEncoder
from .per_task import TaskModule


@torch.no_grad()
def fold_task(encoder: TaskEncoder, task: str) -> FeatureMaps:
    """Fold norms of NFF, ``W_t W_s`` (or adapters) and BatchNorm into one convolution with bias per layer.

    Works for every encoder of this package; products are computed in float64. The encoder is left as it is.

    Returns:
        A plain network with the outputs of ``encoder(images, task)`` in evaluation mode, on the encoder's device;
        frozen. Each BatchNorm has become an identity.

    Raises:
        UserError: no such task.
    """
    if task not in encoder.tasks:
        raise UserError(f"task '{task}' is not in this model, which has: {', '.join(encoder.tasks) or 'none'}")
    replaced = {}
    for pair in encoder.pairs:
        convolution = encoder.body.get_submodule(pair.convolution)
        norm = encoder.body.get_submodule(pair.norm)
        replaced[pair.convolution] = _fold(convolution, norm, task)
        replaced[pair.norm] = nn.Identity()
    # deepcopy takes these modules for already copied, so that the parts of other tasks are never duplicated.
    memo = {id(encoder.body.get_submodule(name)): module for name, module in replaced.items()}
    body = copy.deepcopy(encoder.body, memo)
    return FeatureMaps(body, encoder.layers, encoder.strides).eval().requires_grad_(False)


def _fold(convolution: nn.Module, norm: nn.Module, task: str) -> nn.Conv2d:
    if isinstance(convolution, TaskModule):
        weight, bias = convolution.merged(task)
    else:
        weight, bias = convolution.weight.double(), None
    if isinstance(norm, TaskModule):
        norm = norm.tasks[task]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    if bias is not None:
        shift = shift + scale * bias
    return _convolution(weight * scale[:, None, None, None], shift, convolution)


def _convolution(weight: Tensor, bias: Tensor, like: nn.Module) -> nn.Conv2d:
    """A plain float32 convolution with the geometry of ``like``."""
    plain = nn.Conv2d(
        weight.shape[1] * like.groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=like.stride,
        padding=like.padding,
        dilation=like.dilation,
        groups=like.groups,
    ).to(weight.device)
    plain.weight.copy_(weight)
    plain.bias.copy_(bias)
    return plain
