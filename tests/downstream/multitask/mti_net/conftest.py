"""Small networks with four scales."""

import pytest
import timm
import torch

from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions, build_multi_scale_model
from polyscene.runtime.weights import BackboneWeights

MAIN = {"segmentation": 5, "depth": 1}
AUXILIARY = {"normals": 3}


@pytest.fixture(scope="session")
def backbone_weights():
    """Architecture -> random weights, all parts of the classifier included."""
    made = {}

    def get(arch):
        if arch not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                state = timm.create_model(arch, num_classes=0).state_dict()
            # timm starts the last norm of every block at 0: no gradient would get past it.
            for key, value in state.items():
                if key.endswith(".bn2.weight"):
                    value.fill_(1)
            made[arch] = BackboneWeights(arch, state)
        return made[arch]

    return get


@pytest.fixture(scope="session")
def build(backbone_weights):
    """Kind and options -> a network on a small ResNet with a pyramid of 16 channels."""

    def make(kind, arch="resnet10t", channels=None, auxiliary=None, seed=0, image_level=(), **options):
        options = MultiScaleOptions(kind, **{"pyramid_width": 16, "width": 16, **options})
        channels = MAIN if channels is None else channels
        return build_multi_scale_model(options, backbone_weights(arch), channels, auxiliary, seed, image_level)

    return make


@pytest.fixture(scope="session")
def photos():
    """(2, 3, 64, 96) normalised images."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
