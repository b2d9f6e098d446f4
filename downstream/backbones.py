"""Backbones for dense features: a list of feature maps with known channels and strides."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights, load_backbone

LAYERS = ("layer1", "layer2", "layer3", "layer4")
_STRIDES = (4, 8, 16, 32)


class FeatureMaps(nn.Module):
    """The chosen stages of a ResNet, as a list of feature maps.

    Made by :func:`feature_maps`. Stages after the last chosen one are not run.

    Attributes:
        body: the timm ResNet without classifier; its state dict has torchvision's names.
        layers: the chosen stages.
        channels: width of every map.
        strides: image pixels per cell of every map.
    """

    def __init__(self, body: ResNet, layers: Sequence[str], strides: Sequence[int]):
        super().__init__()
        self.body = body
        self.layers = tuple(layers)
        self.strides = tuple(strides)
        widths = {info["module"]: info["num_chs"] for info in body.feature_info}
        self.channels = tuple(widths[layer] for layer in layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> one (N, C, ceil(H / stride), ceil(W / stride)) map per chosen stage."""
        body = self.body
        x = body.maxpool(body.act1(body.bn1(body.conv1(images))))
        maps = {}
        for layer in LAYERS:
            x = getattr(body, layer)(x)
            maps[layer] = x
            if layer == self.layers[-1]:
                break
        return [maps[layer] for layer in self.layers]


def feature_maps(
    weights: BackboneWeights,
    *,
    layers: Sequence[str] = ("layer4",),
    output_stride: int = 32,
    dilate: bool = True,
) -> FeatureMaps:
    """Build the network of ``weights`` for dense features, in evaluation mode, on the CPU.

    Args:
        weights: a ResNet's weights; loaded strictly.
        layers: stages whose maps are wanted, in the order of the network.
        output_stride: 8, 16 or 32: stages that would go beyond keep their input's resolution.
        dilate: such stages dilate their 3x3 convolutions, so that every filter sees the same pixels as at stride 32
            (segmentation); False leaves them as they are (label propagation of videos).

    Raises:
        UserError: not a ResNet, or it has no variant of this output stride.
        ValueError: unknown stage or output stride, or stages out of order.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride={output_stride}: choose 8, 16 or 32")
    if not layers or list(layers) != [layer for layer in LAYERS if layer in layers]:
        raise ValueError(f"layers={tuple(layers)}: choose from {', '.join(LAYERS)}, in this order")
    stride = output_stride if dilate else 32
    body = timm.create_model(weights.arch, num_classes=0, output_stride=stride)
    if not isinstance(body, ResNet):
        raise UserError(f"'{weights.arch}' is not a ResNet; dense features need one, for example resnet50")
    load_backbone(body, weights)
    if not dilate:
        for layer, reached in zip(LAYERS, _STRIDES):
            if reached > output_stride:
                _keep_resolution(getattr(body, layer))
    strides = [min(_STRIDES[LAYERS.index(layer)], output_stride) for layer in layers]
    return FeatureMaps(body, layers, strides).eval()


def _keep_resolution(stage: nn.Module) -> None:
    """Set every stride within a stage to 1, without dilation."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d) and module.stride in (2, (2, 2)):
            # The pooled shortcut of the ResNet-D family; a window of 1 leaves its input as it is.
            module.kernel_size = module.stride = 1
