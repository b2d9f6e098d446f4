"""The contract of the backbones with four scales."""

import pytest
import timm
import torch

from polyscene.downstream.multitask.mti_net.backbones import multi_scale_maps
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

HRNET = "hrnet_w18_small_v2"


@pytest.mark.parametrize(("arch", "channels"), [("resnet10t", (8, 8, 8, 8)), (HRNET, (18, 36, 72, 144))])
@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
@torch.no_grad()
def test_maps_have_the_stated_channels_and_strides(backbone_weights, arch, channels, size):
    maps = multi_scale_maps(backbone_weights(arch), pyramid_width=8)
    assert maps.channels == channels
    assert maps.strides == (4, 8, 16, 32)
    found = [tuple(x.shape) for x in maps(torch.randn(1, 3, *size))]
    cells = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in maps.strides]
    assert found == [(1, width, *cell) for width, cell in zip(channels, cells)]


@pytest.mark.parametrize(("arch", "widths"), [("hrnet_w18", (18, 36, 72, 144)), ("hrnet_w48", (48, 96, 192, 384))])
def test_larger_networks_have_their_widths(arch, widths):
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0).state_dict()
        branches = timm.create_model(arch, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    assert tuple(branches.feature_info.channels()) == widths
    assert set(branches.state_dict()) < set(state)


@torch.no_grad()
def test_hrnet_is_the_pretrained_network(backbone_weights, photos):
    weights = backbone_weights(HRNET)
    network = timm.create_model(HRNET, num_classes=0).eval()
    network.load_state_dict(weights.state)
    x = network.act1(network.bn1(network.conv1(photos)))
    expected = network.stages(network.act2(network.bn2(network.conv2(x))))
    for ours, theirs in zip(multi_scale_maps(weights)(photos), expected):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_pyramid_stands_on_the_pretrained_network(backbone_weights, photos):
    weights = backbone_weights("resnet10t")
    maps = multi_scale_maps(weights, pyramid_width=8)
    network = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    network.load_state_dict(weights.state)
    laterals = [block[0](stage) for block, stage in zip(maps.pyramid.inner_blocks, network(photos))]
    for fine in (2, 1, 0):
        coarse = laterals[fine + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        laterals[fine] = laterals[fine] + coarse
    for found, block, lateral in zip(maps(photos), maps.pyramid.layer_blocks, laterals):
        assert torch.allclose(found, block[0](lateral), atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet10t", HRNET])
@pytest.mark.parametrize("strides", [(4,), (8, 16), (4, 32)])
def test_fewer_scales_give_the_same_maps_and_all_weights_are_used(backbone_weights, photos, arch, strides):
    weights = backbone_weights(arch)
    every = dict(zip((4, 8, 16, 32), multi_scale_maps(weights, pyramid_width=8)(photos)))
    some = multi_scale_maps(weights, strides=strides, pyramid_width=8)
    maps = some(photos)
    for stride, found in zip(strides, maps):
        if arch == HRNET or strides[0] == 4:  # else the pyramid has other layers, with other random values
            assert torch.equal(found, every[stride])
    sum(x.square().sum() for x in maps).backward()
    assert [name for name, parameter in some.named_parameters() if parameter.grad is None] == []


def test_weights_are_loaded_strictly(backbone_weights):
    complete = backbone_weights(HRNET)
    trunk = {k: v for k, v in complete.state.items() if not k.startswith(("incre_", "downsamp_", "final_"))}
    bare = multi_scale_maps(BackboneWeights(HRNET, trunk))
    assert torch.equal(bare.body.conv1.weight, complete.state["conv1.weight"])
    lacking = {key: value for key, value in trunk.items() if key != "stage3.0.branches.1.0.conv1.weight"}
    with pytest.raises(UserError, match="1 missing"):
        multi_scale_maps(BackboneWeights(HRNET, lacking))
    with pytest.raises(UserError, match="1 unexpected"):
        multi_scale_maps(BackboneWeights(HRNET, {**trunk, "more.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match="neither a ResNet nor an HRNet"):
        multi_scale_maps(BackboneWeights("mobilenetv3_small_050", {}))
    with pytest.raises(UserError, match="does not know"):
        multi_scale_maps(BackboneWeights("hrnet_w19", {}))
    with pytest.raises(ValueError, match="in this order"):
        multi_scale_maps(complete, strides=(8, 4))


def test_pyramid_depends_on_its_seed_alone(backbone_weights):
    torch.manual_seed(5)
    first = multi_scale_maps(backbone_weights("resnet10t"), pyramid_width=8, seed=1).pyramid.state_dict()
    assert torch.initial_seed() == 5
    torch.manual_seed(6)
    again = multi_scale_maps(backbone_weights("resnet10t"), pyramid_width=8, seed=1).pyramid.state_dict()
    other = multi_scale_maps(backbone_weights("resnet10t"), pyramid_width=8, seed=2).pyramid.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["inner_blocks.0.0.weight"], other["inner_blocks.0.0.weight"])
