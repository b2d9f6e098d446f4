"""Residual blocks of the decoders, and their initial values."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck


def basic_block(inputs: int, outputs: int) -> BasicBlock:
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution where the width changes."""
    return BasicBlock(inputs, outputs, downsample=_shortcut(inputs, outputs))


def bottleneck(inputs: int, outputs: int) -> Bottleneck:
    """1x1, 3x3 and 1x1 convolutions with a quarter of the channels between; shortcut as in `basic_block`."""
    return Bottleneck(inputs, outputs // Bottleneck.expansion, downsample=_shortcut(inputs, outputs))


def _shortcut(inputs: int, outputs: int) -> nn.Module | None:
    if inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


@torch.no_grad()
def initialise_by_name(module: nn.Module, name: str, seed: int) -> None:
    """Fill the convolutions of a new module: He's normal distribution, biases 0.

    Fan in: masks, gates and attention have no BatchNorm, and what they compute should not depend on their width.
    Layers called ``prediction`` get weights of standard deviation 0.01, so that no task starts with large outputs.
    The values of a layer depend on the seed, its name and its shape alone: networks of an ablation start with the
    same bits wherever they have the same layers, whatever else they have.

    Args:
        module: on the CPU.
        name: of the module in the whole network.
        seed: of the whole network.
    """
    for key, layer in module.named_modules(prefix=name):
        if not isinstance(layer, nn.Conv2d):
            continue
        digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if "prediction" in key.split("."):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
        else:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
