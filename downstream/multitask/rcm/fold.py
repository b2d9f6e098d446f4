"""One task of an encoder as a plain network: no task modules, no BatchNorm, no extra cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polyscene.downstream.backbones import FeatureMaps
from polyscene.runtime.errors import UserError

from .encoder import TaskEncoder
from .pairs import Pair, convolution_pairs
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
    body = _folded_body(encoder.body, encoder.pairs, task)
    return FeatureMaps(body, encoder.layers, encoder.strides).eval().requires_grad_(False)


@torch.no_grad()
def fold_features(features: FeatureMaps) -> FeatureMaps:
    """Fold the BatchNorms of a plain encoder into its convolutions, as :func:`fold_task` does; it stays as it is.

    Raises:
        UserError: not a ResNet of plain blocks.
    """
    body = _folded_body(features.body, convolution_pairs(features.body), None)
    return FeatureMaps(body, features.layers, features.strides).eval().requires_grad_(False)


@torch.no_grad()
def fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.Module, like: nn.Module) -> nn.Conv2d:
    """A convolution and the BatchNorm after it, in evaluation mode, as one float32 convolution with bias.

    Args:
        weight: (C_out, C_in / groups, k, k) of the convolution.
        bias: (C_out,) of the convolution.
        norm: a BatchNorm, or a frozen one.
        like: has stride, padding, dilation and groups of the convolution.
    """
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    if bias is not None:
        shift = shift + scale * bias.double()
    return _convolution(weight.double() * scale[:, None, None, None], shift, like)


def _folded_body(body: ResNet, pairs: Sequence[Pair], task: str | None) -> ResNet:
    replaced = {}
    for pair in pairs:
        convolution, norm = body.get_submodule(pair.convolution), body.get_submodule(pair.norm)
        if isinstance(convolution, TaskModule):
            weight, bias = convolution.merged(task)
        else:
            weight, bias = convolution.weight, None
        norm = norm.tasks[task] if isinstance(norm, TaskModule) else norm
        replaced[pair.convolution] = fold_norm(weight, bias, norm, convolution)
        replaced[pair.norm] = nn.Identity()
    # deepcopy takes these modules for already copied, so that the parts of other tasks are never duplicated.
    memo = {id(body.get_submodule(name)): module for name, module in replaced.items()}
    return copy.deepcopy(body, memo)


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
