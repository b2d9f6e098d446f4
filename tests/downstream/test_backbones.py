"""Dense backbones: sizes, what dilation must leave unchanged, and refusal of other weights."""

import pytest
import timm
import torch

from polyscene.downstream.backbones import feature_maps
from polyscene.launch.evaluation import random_weights
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def weights():
    """Random weights with BatchNorm statistics that are not the trivial ones."""
    made = {}
    for arch in ("resnet18", "resnet50", "resnet10t"):
        made[arch] = random_weights(arch, 0)
        generator = torch.Generator().manual_seed(1)
        for key, value in made[arch].state.items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
    return made


def images(height=96, width=64):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def maps(network):
    return network(images())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet10t"])
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("dilate", [True, False])
def test_channels_and_strides_are_those_of_the_maps(weights, arch, stride, dilate):
    network = feature_maps(weights[arch], layers=LAYERS, output_stride=stride, dilate=dilate)
    assert not network.training
    assert network.strides == tuple(min(s, stride) for s in (4, 8, 16, 32))
    assert network.channels == ((256, 512, 1024, 2048) if arch == "resnet50" else (64, 128, 256, 512))
    for found, channels, cell in zip(maps(network), network.channels, network.strides):
        assert found.shape == (2, channels, 96 // cell, 64 // cell)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_stride_32_is_the_plain_network(weights, arch):
    model = timm.create_model(arch, num_classes=0).eval()
    model.load_state_dict(weights[arch].state)
    with torch.no_grad():
        expected = model.forward_features(images())
    assert torch.equal(maps(feature_maps(weights[arch]))[0], expected)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("stride", "step"), [(16, 2), (8, 4)])
def test_dilated_maps_contain_the_strided_one(weights, arch, stride, step):
    """Filters keep their pixels: every step-th cell of the dilated layer4 is the cell at stride 32.

    Exact for these networks, whose strided convolutions are all 3x3 or 1x1, at any image size.
    """
    for size in ((96, 64), (72, 100)):
        coarse = feature_maps(weights[arch])
        fine = feature_maps(weights[arch], output_stride=stride)
        with torch.no_grad():
            expected, found = coarse(images(*size))[0], fine(images(*size))[0]
        sampled = found[:, :, ::step, ::step]
        assert sampled.shape == expected.shape
        assert torch.allclose(sampled, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        # What lies between is not a copy.
        assert not torch.allclose(found[:, :, 1::step, 1::step][..., :1, :1], expected[..., :1, :1], rtol=1e-2)


def test_without_dilation_stages_before_the_stride_agree_and_later_ones_differ(weights):
    dilated = maps(feature_maps(weights["resnet18"], layers=LAYERS, output_stride=8))
    plain = maps(feature_maps(weights["resnet18"], layers=LAYERS, output_stride=8, dilate=False))
    for i in (0, 1):
        assert torch.equal(dilated[i], plain[i])
    assert not torch.allclose(dilated[2], plain[2], rtol=1e-2)
    body = feature_maps(weights["resnet18"], output_stride=8, dilate=False).body
    convolutions = [m for m in body.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.dilation == (1, 1) for m in convolutions)


def test_chosen_stages_only(weights):
    every = maps(feature_maps(weights["resnet18"], layers=LAYERS))
    some = maps(feature_maps(weights["resnet18"], layers=("layer1", "layer3")))
    assert len(some) == 2
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[1], every[2])


def test_channels_last_is_the_same_function(weights):
    network = feature_maps(weights["resnet18"], output_stride=8)
    expected = maps(network)[0]
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = network(images().contiguous(memory_format=torch.channels_last))[0]
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_other_weights_are_refused(weights):
    wrong = BackboneWeights("resnet50", weights["resnet18"].state, source_format="test")
    with pytest.raises(UserError, match="does not fit the model"):
        feature_maps(wrong)
    lacking = dict(weights["resnet18"].state)
    del lacking["layer4.1.conv2.weight"]
    with pytest.raises(UserError, match=r"layer4.1.conv2.weight"):
        feature_maps(BackboneWeights("resnet18", lacking, source_format="test"))


@pytest.mark.parametrize("arguments", [{"output_stride": 4}, {"layers": ()}, {"layers": ("layer4", "layer1")}])
def test_wrong_arguments(weights, arguments):
    with pytest.raises(ValueError, match=r"output_stride|layers"):
        feature_maps(weights["resnet18"], **arguments)
