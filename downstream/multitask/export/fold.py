"""One task of a model as a plain network: images in, raw output out, no BatchNorm, nothing of other tasks."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from polyscene.downstream.backbones import FeatureMaps

from ..heads.blocks import ConvNorm
from ..heads.build import Head
from ..models.base import DenseModel
from ..rcm.encoder import TaskEncoder
from ..rcm.fold import fold_features, fold_norm, fold_task


class PlainNetwork(nn.Module):
    """An encoder and a head of plain layers.

    Attributes:
        encoder: images -> feature maps.
        head: feature maps -> output.
    """

    def __init__(self, encoder: FeatureMaps, head: Head):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Run the network.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1] minus ImageNet's mean, divided by its standard deviation
                (:func:`polyscene.runtime.features.normalise`); any H and W.

        Returns:
            (N, channels, H, W) float32 raw output: logits, metres, or vectors not yet of length 1; (N, channels, 1, 1)
            of an image-level task.
        """
        return self.head(self.encoder(images), (images.shape[-2], images.shape[-1]))


def fold_model(model: DenseModel, task: str) -> PlainNetwork:
    """Fold modulators or adapters and every BatchNorm into plain convolutions with bias, encoder and head.

    Products are computed in float64, so that outputs differ by rounding only: less than 1e-5 of the largest. The
    model is left as it is.

    Args:
        model: of any kind, shared encoders included.
        task: one of its tasks.

    Returns:
        A frozen network in evaluation mode, on the model's device, of the size of the pretrained backbone and a head.

    Raises:
        UserError: no such task.
    """
    model.check_present(task)
    encoder = model.encoder
    features = fold_task(encoder, task) if isinstance(encoder, TaskEncoder) else fold_features(encoder)
    return PlainNetwork(features, _fold_head(model.heads.tasks[task])).eval().requires_grad_(False)


def _fold_head(head: Head) -> Head:
    folded = copy.deepcopy(head)
    for block in folded.modules():
        if isinstance(block, ConvNorm):
            block.convolution = fold_norm(block.convolution.weight, None, block.norm, block.convolution)
            block.norm = nn.Identity()
    return folded
