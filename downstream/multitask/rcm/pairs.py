"""The convolutions of a timm ResNet, each with the BatchNorm that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from polyscene.runtime.errors import UserError


@dataclass(frozen=True)
class Pair:
    """A convolution and its BatchNorm, by their names within the ResNet.

    Attributes:
        convolution: for example ``layer1.0.conv1``.
        norm: for example ``layer1.0.bn1``.
        role: ``spatial`` (larger than 1x1), ``pointwise`` (1x1) or ``downsample`` (1x1 on a block's shortcut).
    """

    convolution: str
    norm: str
    role: str


def convolution_pairs(body: ResNet) -> list[Pair]:
    """All convolutions that a BatchNorm follows, in the order of the network.

    Convolutions without BatchNorm (inside squeeze-and-excitation) are not listed.

    Raises:
        UserError: blocks that are neither timm's BasicBlock nor its Bottleneck, or a BatchNorm of another kind or
            place.
    """
    blocks = [block for name in ("layer1", "layer2", "layer3", "layer4") for block in getattr(body, name).children()]
    if wrong := [type(block).__name__ for block in blocks if type(block) not in (BasicBlock, Bottleneck)]:
        raise UserError(f"this ResNet is built from {wrong[0]}; only BasicBlock and Bottleneck can be used here")
    # timm registers modules in the order in which they run, so the next module after a convolution is what follows it.
    leaves = [(name, module) for name, module in body.named_modules() if next(module.children(), None) is None]
    pairs = []
    for (name, module), (next_name, next_module) in pairwise(leaves):
        if isinstance(module, nn.Conv2d) and type(next_module) is nn.BatchNorm2d and module.bias is None:
            pairs.append(Pair(name, next_name, _role(name, module)))
    paired = {pair.norm for pair in pairs}
    for name, module in leaves:
        if isinstance(module, _BatchNorm) and name not in paired:
            raise UserError(f"'{name}' of this ResNet does not directly follow a convolution; use a plain ResNet")
    return pairs


def _role(name: str, convolution: nn.Conv2d) -> str:
    if convolution.kernel_size != (1, 1):
        return "spatial"
    return "downsample" if ".downsample." in name else "pointwise"
