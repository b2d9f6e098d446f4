"""What the encoder shows every task, as colours: figure 5 of the RCM paper.

For every task and layer the feature maps of all compared models get one common PCA basis; its first three components
are red, green and blue. Equal colours then mean equal features, in every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from polyscene.downstream.backbones import LAYERS
from polyscene.runtime.errors import UserError

from ..models.base import DenseModel

COLOURS = 3
_TAILS = 0.01  # share of positions at either end whose colours saturate


@dataclass(frozen=True)
class CommonBasis:
    """Principal components of several models' features, and the range that becomes colours.

    Attributes:
        mean: (C,) float64.
        components: (C, 3) float64, orthonormal; the largest entry of each is positive.
        shares: (3,) float64, of the total variance.
        low: (3,) float64, projections drawn as 0.
        high: (3,) float64, projections drawn as 255.
    """

    mean: Tensor
    components: Tensor
    shares: Tensor
    low: Tensor
    high: Tensor

    def project(self, features: Tensor) -> Tensor:
        """(C, h, w) -> (h, w, 3) float64."""
        return (features.double().permute(1, 2, 0) - self.mean) @ self.components

    def colours(self, features: Tensor) -> np.ndarray:
        """(C, h, w) -> (h, w, 3) uint8."""
        room = (self.high - self.low).clamp(min=torch.finfo(torch.float64).tiny)
        scaled = ((self.project(features) - self.low) / room).clamp(0, 1)
        return (255 * scaled).round().to(torch.uint8).numpy()


def common_basis(maps: Sequence[Tensor]) -> CommonBasis:
    """PCA over all positions of all maps together.

    Args:
        maps: (C, h, w) each; every model should bring as many positions as the others.

    Raises:
        UserError: maps of different widths, or of fewer than three channels.
    """
    widths = {len(each) for each in maps}
    if len(widths) != 1 or min(widths) < COLOURS:
        raise UserError(f"features of {sorted(widths)} channels have no common colours; compare models of one backbone")
    values = torch.cat([each.double().flatten(1) for each in maps], dim=1)
    mean = values.mean(1)
    centred = values - mean[:, None]
    variances, directions = torch.linalg.eigh(centred @ centred.T / values.shape[1])
    components = directions.flip(1)[:, :COLOURS]
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    components = components * largest.sign()
    total = variances.clamp(min=0).sum()
    shares = variances.flip(0)[:COLOURS].clamp(min=0) / total if total > 0 else torch.zeros(COLOURS).double()
    projected = (components.T @ centred).numpy()
    low, high = (torch.from_numpy(np.quantile(projected, q, axis=1)) for q in (_TAILS, 1 - _TAILS))
    return CommonBasis(mean, components, shares, low, high)


@torch.no_grad()
def layer_maps(
    model: DenseModel, images: Tensor, tasks: Sequence[str], layers: Sequence[str] = LAYERS
) -> dict[str, dict[str, Tensor]]:
    """The output of the encoder's stages for every task, in evaluation mode.

    Args:
        model: its mode is put back afterwards.
        images: normalised (N, 3, H, W), on the model's device.
        tasks: of the model.
        layers: stages; the model's encoder must have them.

    Returns:
        Task -> stage -> (N, C, h, w) float32 on the CPU.

    Raises:
        UserError: no such task, or a stage that the encoder lacks.
    """
    seen: dict[str, Tensor] = {}

    def keep(layer: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = output.detach().float().cpu()

        return hook

    for task in tasks:
        model.check_present(task)
    handles = [_last_activation(model, layer).register_forward_hook(keep(layer)) for layer in layers]
    was_training = model.training
    model.eval()
    found = {}
    try:
        for task in tasks:
            model.task_maps(images, [task])
            found[task] = {layer: seen[layer] for layer in layers}
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return found


def resemblance(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two models' features over the same positions: 1 for equal ones, up to rotation and scale.

    Kornblith et al., ICML 2019, equation 7. It compares what the colours show, without choosing three components.

    Args:
        first: (C, n), features at n positions.
        second: (D, n).

    Returns:
        In [0, 1]; 0 where one of them is constant.
    """
    first, second = (each.double() - each.double().mean(1, keepdim=True) for each in (first, second))
    both = (first @ second.T).square().sum()
    own = (first @ first.T).norm() * (second @ second.T).norm()
    return float(both / own) if own > 0 else 0.0


@dataclass(frozen=True)
class FeatureComparison:
    """One task's features in several models.

    Attributes:
        pictures: model -> layer -> a picture (h, w, 3) uint8 for every image.
        bases: layer -> what the colours mean.
        cka: model -> layer -> linear CKA with the first model.
    """

    pictures: dict[str, dict[str, list[np.ndarray]]]
    bases: dict[str, CommonBasis]
    cka: dict[str, dict[str, float]]


def compare_features(maps: Mapping[str, Mapping[str, Sequence[Tensor]]]) -> FeatureComparison:
    """Colour one task's features in several models, and say how much each resembles the first.

    Args:
        maps: model -> layer -> (C, h, w) for every image; the same images and layers for all models.

    Raises:
        UserError: models of different widths.
    """
    first = next(iter(maps))
    pictures: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in maps}
    bases: dict[str, CommonBasis] = {}
    cka: dict[str, dict[str, float]] = {name: {} for name in maps}
    for layer in maps[first]:
        bases[layer] = common_basis([each for layers in maps.values() for each in layers[layer]])
        reference = _positions(maps[first][layer])
        for name, layers in maps.items():
            pictures[name][layer] = [bases[layer].colours(each) for each in layers[layer]]
            cka[name][layer] = resemblance(reference, _positions(layers[layer]))
    return FeatureComparison(pictures, bases, cka)


def _positions(maps: Sequence[Tensor]) -> Tensor:
    """(C, h, w) each -> (C, n)."""
    return torch.cat([each.flatten(1) for each in maps], dim=1)


def _last_activation(model: DenseModel, layer: str) -> nn.Module:
    """What runs last in a stage; a stage of a task encoder is not called as one module, its parts are."""
    stage = getattr(model.encoder.body, layer, None)
    if not isinstance(stage, nn.Sequential):
        raise UserError(f"this model's encoder has no {layer}; choose from {', '.join(LAYERS)}")
    block = stage[-1]
    return block.act3 if isinstance(block, Bottleneck) else block.act2
