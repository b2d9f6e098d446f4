"""Backbones with feature maps at 1/4, 1/8, 1/16 and 1/32 of the image: ResNet with a feature pyramid, and HRNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.hrnet import HighResolutionNetFeatures
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from polyscene.downstream.backbones import LAYERS, FeatureMaps, feature_maps
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights, load_backbone

STRIDES = (4, 8, 16, 32)
PYRAMID_WIDTH = 256
"""Channels of all maps of a feature pyramid (Lin et al., "Feature Pyramid Networks", 2017, section 3)."""
_CLASSIFIER = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")


class PyramidMaps(nn.Module):
    """A ResNet with a feature pyramid on its four stages.

    All stages are run, since coarse ones flow into the finer maps; only what a map that is not asked for needs for
    itself is left out.

    Attributes:
        channels: width of every map.
        strides: image pixels per cell of every map, ascending.
    """

    def __init__(self, body: FeatureMaps, strides: Sequence[int], width: int):
        """Make a pyramid with torchvision's initial values on the stages of ``body``: from the finest stride on."""
        super().__init__()
        self.body = body
        self.pyramid = FeaturePyramidNetwork(list(body.channels), width)
        for place, stride in enumerate(body.strides):
            if stride not in strides:
                self.pyramid.layer_blocks[place] = nn.Identity()
        self.strides = tuple(strides)
        self.channels = (width,) * len(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> one (N, width, ceil(H / stride), ceil(W / stride)) map per stride."""
        stages = OrderedDict((str(stride), stage) for stride, stage in zip(self.body.strides, self.body(images)))
        maps = self.pyramid(stages)
        return [maps[str(stride)] for stride in self.strides]


class HRNetMaps(nn.Module):
    """The branches of an HRNet after its last stage.

    Attributes:
        channels: width of every map, for example 18, 36, 72 and 144.
        strides: image pixels per cell of every map, ascending.
    """

    def __init__(self, body: HighResolutionNetFeatures, strides: Sequence[int]):
        super().__init__()
        self.body = body
        self.strides = tuple(strides)
        self.channels = tuple(body.feature_info.channels()[STRIDES.index(stride)] for stride in strides)
        for place, stride in enumerate(STRIDES):
            if stride not in strides:
                # The last fusion into this branch: nobody would use its result, so its weights would get no gradient.
                body.stage4[-1].fuse_layers[place] = nn.ModuleList([nn.Identity()])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) -> one (N, C, ceil(H / stride), ceil(W / stride)) map per stride.

        The branches only fit each other for multiples of 32: other images are padded at the right and below with the
        mean colour, and the maps are cut.
        """
        height, width = images.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            images = F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = dict(zip(STRIDES, self.body(images)))
        return [maps[stride][..., : -(-height // stride), : -(-width // stride)] for stride in self.strides]


MultiScaleMaps = PyramidMaps | HRNetMaps


def multi_scale_maps(
    weights: BackboneWeights, *, strides: Sequence[int] = STRIDES, pyramid_width: int = PYRAMID_WIDTH, seed: int = 0
) -> MultiScaleMaps:
    """Build a network of four scales from pretrained weights, in evaluation mode, on the CPU, with gradients.

    Args:
        weights: of a ResNet, which gets a feature pyramid, or of an HRNet; loaded strictly. An HRNet's weights may
            have the parts that only its classifier uses, or not.
        strides: the scales that are wanted, ascending.
        pyramid_width: channels of the maps of a feature pyramid.
        seed: of the initial values of the feature pyramid.

    Raises:
        UserError: neither a ResNet nor an HRNet, or weights that are not complete.
        ValueError: strides that there are not, or not in order.
    """
    if not strides or list(strides) != [stride for stride in STRIDES if stride in strides]:
        raise ValueError(f"strides={tuple(strides)}: choose from {STRIDES}, in this order")
    check_architecture(weights.arch)
    if is_model_in_modules(weights.arch, ["hrnet"]):
        return HRNetMaps(_hrnet(weights), strides).eval()
    body = feature_maps(weights, layers=LAYERS[STRIDES.index(strides[0]) :])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PyramidMaps(body, strides, pyramid_width).eval()


def check_architecture(arch: str) -> None:
    """Refuse networks without four scales.

    Raises:
        UserError: neither a ResNet nor an HRNet of timm.
    """
    if not timm.is_model(arch):
        raise UserError(f"arch={arch}: timm {timm.__version__} does not know this network")
    if not is_model_in_modules(arch, ["resnet", "hrnet"]):
        raise UserError(f"arch={arch} is neither a ResNet nor an HRNet; use resnet18 or hrnet_w18_small_v2")


def random_backbone(arch: str, seed: int) -> BackboneWeights:
    """The weights of a ResNet or HRNet as it is initialised; torch's random state is left as it was.

    Residual branches of a ResNet start as in pretraining: last BatchNorm weight 1, not 0.

    Raises:
        UserError: neither a ResNet nor an HRNet.
    """
    check_architecture(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"zero_init_last": False} if is_model_in_modules(arch, ["resnet"]) else {}
        state = timm.create_model(arch, num_classes=0, **options).state_dict()
    return BackboneWeights(arch, state, source_format="random initialisation")


def _hrnet(weights: BackboneWeights) -> HighResolutionNetFeatures:
    with torch.random.fork_rng(devices=[]):  # random values that are overwritten
        body = timm.create_model(weights.arch, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    state = {key: value for key, value in weights.state.items() if not key.startswith(_CLASSIFIER)}
    load_backbone(body, BackboneWeights(weights.arch, state, source_format=weights.source_format, path=weights.path))
    return body
