"""One frozen backbone and what explains its maps: a linear head, or the principal component of its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyscene.downstream.backbones import FeatureMaps, feature_maps
from polyscene.runtime.features import network_output
from polyscene.runtime.weights import BackboneWeights

from .cam import (
    Component,
    PixelMoments,
    class_activation_maps,
    component_map,
    enlarge,
    probe_logits,
    unit_range,
)
from .linear_head import LinearHead, check_head

PREDICTED, TRUE = "predicted", "true"


@dataclass(frozen=True)
class Explained:
    """The maps of one photo.

    Attributes:
        maps: (n, H, W) in [0, 1] on the CPU, one a wanted class; a single one without a head.
        titles: a line a map.
        predicted: name of the predicted class, None without a head.
    """

    maps: Tensor
    titles: Sequence[str]
    predicted: str | None


class Viewer:
    """Draws maps of a frozen backbone, one photo at a time.

    Args:
        weights: the backbone's weights.
        title: its name for people.
        head: a linear head that was trained on this backbone, or None: the first principal component is shown.
        output_stride: 8, 16 or 32 pixels per cell, reached by dilation.
        device: where to compute.
        precision: ``fp32`` or ``bf16``, of the backbone's arithmetic.

    Raises:
        UserError: not a ResNet, or the head of another backbone.
    """

    def __init__(
        self,
        weights: BackboneWeights,
        title: str,
        head: LinearHead | None,
        *,
        output_stride: int,
        device: torch.device,
        precision: str,
    ):
        self.title, self.head, self.device, self.precision = title, head, device, precision
        network: FeatureMaps = feature_maps(weights, output_stride=output_stride)
        self.channels, self.stride = network.channels[-1], network.strides[-1]
        if head is not None:
            check_head(head, weights, self.channels, title)
            self._weight, self._bias = head.weight.to(device), head.bias.to(device)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.component: Component | None = None
        self._moments = PixelMoments(self.channels, device)

    @torch.no_grad()
    def features(self, view: Tensor) -> Tensor:
        """uint8 (3, H, W) -> last map (C, h, w) float32 on the device."""
        return network_output(self.network, view.to(self.device)[None], self.precision)[-1][0].float()

    def study(self, view: Tensor) -> None:
        """Let the principal component see a photo; only needed without a head."""
        self._moments.add(self.features(view))

    def settle(self) -> Component:
        """Fix the principal component of the photos seen so far."""
        self.component = self._moments.component()
        return self.component

    def explain(self, view: Tensor, wanted: Sequence[str], true_class: str | None) -> Explained:
        """Maps of a photo, each scaled to its own range.

        Args:
            view: (3, H, W) uint8.
            wanted: class names, ``predicted`` or ``true``; a true class that is unknown gives an empty map.
            true_class: the photo's class, if known.

        Raises:
            UserError: a wanted class that the head does not have.
            ValueError: neither a head nor a settled component.
        """
        features, size = self.features(view), (view.shape[1], view.shape[2])
        if self.head is None:
            if self.component is None:
                raise ValueError("settle() the principal component first")
            values = unit_range(enlarge(component_map(features, self.component), size, self.stride))
            return Explained(values[None].cpu(), ["first component"], None)
        logits = probe_logits(features, self._weight, self._bias, normalised=self.head.normalised)
        chances = logits.softmax(dim=0)
        predicted = self.head.class_names[int(logits.argmax())]
        maps, titles = [], []
        for name in wanted:
            shown = {PREDICTED: predicted, TRUE: true_class}.get(name, name)
            if shown is None or (name == TRUE and shown not in self.head.class_names):
                maps.append(torch.zeros(size, device=self.device))
                titles.append("class not among the head's")
                continue
            number = self.head.number(shown)
            row = self._weight[number : number + 1]
            cells = class_activation_maps(features, row, normalised=self.head.normalised)[0]
            maps.append(unit_range(enlarge(cells, size, self.stride)))
            titles.append(f"{shown}  {100 * float(chances[number]):.0f}%")
        return Explained(torch.stack(maps).cpu(), titles, predicted)
