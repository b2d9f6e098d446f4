"""Heads: sizes, parameters counted by hand, initial values, and pixels that they see."""

import math

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.heads.aspp import ASPP, rates_at
from polyscene.downstream.multitask.heads.blocks import ConvNorm, PooledNorm, upsample
from polyscene.downstream.multitask.heads.build import HEADS, TaskHeads, build_head, head_layers
from polyscene.runtime.errors import UserError


def head_of(kind, *, inputs=(8, 16), strides=(4, 16), channels=3, width=8, seed=0, task="edges"):
    if kind == "aspp":
        inputs, strides = inputs[1:], strides[1:]
    return build_head(kind, inputs=inputs, strides=strides, channels=channels, width=width, seed=seed, task=task)


def maps_of(kind, size=(64, 48), batch=2):
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(batch, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride), generator=generator)
        for channels, stride in ((8, 4), (16, 16))
    ]
    return maps[1:] if kind == "aspp" else maps


@pytest.mark.parametrize("kind", HEADS)
def test_output_has_the_size_asked_for(kind):
    head = head_of(kind)
    for size in ((64, 48), (65, 47), (1, 1)):
        assert head.eval()(maps_of(kind, size), size).shape == (2, 3, *size)


def test_parameters_of_the_papers_head():
    """ResNet-18, 40 classes: every convolution by hand."""
    head = head_of("deeplab_v3_plus", inputs=(64, 512), channels=40, width=256)
    aspp = 512 * 256 * (1 + 9 + 9 + 9 + 1) + 5 * 256 * 256
    decoder = 64 * 48 + (256 + 48) * 256 * 9 + 256 * 256 * 9
    norms = 2 * (5 * 256 + 256 + 48 + 256 + 256)
    assert sum(parameter.numel() for parameter in head.parameters()) == aspp + decoder + norms + 256 * 40 + 40


def test_parameters_of_deeplab_v3_on_resnet50():
    """The same as torchvision's own DeepLabHead, which has dropout in addition."""
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    head = head_of("aspp", inputs=(256, 2048), channels=40, width=256)
    expected = sum(parameter.numel() for parameter in DeepLabHead(2048, 40).parameters())
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_aspp_head_is_the_function_of_torchvision():
    """Weights are copied in the order of the layers; torchvision's dropout is off in evaluation mode."""
    from torchvision.models.segmentation.deeplabv3 import ASPP as Reference

    ours, reference = ASPP(16, 12, (2, 4, 6)), Reference(16, [2, 4, 6], 12)
    with torch.no_grad():
        for mine, theirs in zip(_filled(ours), _filled(reference), strict=True):
            mine.copy_(theirs)
        x = torch.randn(2, 16, 7, 9, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-5)


def _filled(module):
    """Parameters and running statistics, some of them random, in the order in which layers were registered."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            tensors.append(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            tensors += [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    return tensors


def test_rates():
    assert [rates_at(stride) for stride in (8, 16, 32)] == [(12, 24, 36), (6, 12, 18), (3, 6, 9)]
    with pytest.raises(ValueError, match="stride=4"):
        rates_at(4)
    dilations = {
        module.dilation[0] for module in head_of("aspp", strides=(4, 8)).modules() if hasattr(module, "dilation")
    }
    assert dilations == {1, 12, 24, 36}


def test_low_level_features_have_a_width_of_48():
    assert head_of("deeplab_v3_plus", width=256).low_level.convolution.out_channels == 48
    assert head_of("deeplab_v3_plus", width=64).low_level.convolution.out_channels == 12


def test_upsampling_aligns_borders_not_corners():
    """A ramp of 4 cells of 2 pixels: cell centres lie at 1, 3, 5, 7."""
    ramp = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 1, 4)
    expected = [1.0, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.0]
    assert upsample(ramp, (1, 8)).flatten().tolist() == expected


@pytest.mark.parametrize("kind", HEADS)
def test_initial_values_depend_on_seed_and_task_alone(kind):
    before = torch.random.get_rng_state()
    head = head_of(kind)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, task, seed = head_of(kind), head_of(kind, task="depth"), head_of(kind, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), again.state_dict().values()))
    convolutions = [name for name, value in head.named_parameters() if value.dim() == 4]
    for other in (task, seed):
        assert not any(torch.equal(head.get_parameter(name), other.get_parameter(name)) for name in convolutions)


@pytest.mark.parametrize("kind", HEADS)
def test_initial_distribution(kind):
    head = head_of(kind, inputs=(64, 64), width=64, channels=64)
    for block in head.modules():
        if isinstance(block, ConvNorm):
            weight = block.convolution.weight
            expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.1)
            assert block.norm.weight.eq(1).all()
            assert block.norm.bias.eq(0).all()
    assert float(head.prediction.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert head.prediction.bias.eq(0).all()


def test_a_batch_of_one_image_trains():
    """The pooled branch cannot have statistics of one value: running ones are used and kept."""
    norm = PooledNorm(4).train()
    norm.running_mean.copy_(torch.arange(4.0))
    norm.running_var.fill_(4.0)
    x = torch.ones(1, 4, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), (1 - torch.arange(4.0)) / 2, rtol=1e-5, atol=1e-5)
    assert norm.running_mean.tolist() == [0, 1, 2, 3]
    assert norm.num_batches_tracked == 0
    pair = torch.cat([x, 3 * x])
    torch.testing.assert_close(norm(pair)[:, 0].flatten(), torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 1
    for kind in HEADS:
        head = head_of(kind).train()
        head(maps_of(kind, batch=1), (64, 48)).square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_channels_last_and_autocast(kind):
    """Every map keeps channels_last, the pooled branch too; the output is float32."""
    head = head_of(kind).train().to(memory_format=torch.channels_last)
    kept = []

    def look(module, inputs, output):
        kept.append(all(each.is_contiguous(memory_format=torch.channels_last) for each in (*inputs, output)))

    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    maps = [each.contiguous(memory_format=torch.channels_last) for each in maps_of(kind)]
    with torch.autocast("cpu", torch.bfloat16):
        output = head(maps, (64, 48))
    assert output.dtype == torch.float32
    assert kept
    assert all(kept)
    output.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_heads_of_tasks():
    heads = TaskHeads("aspp", (16,), (16,), 8)
    heads.add_task("depth", 1, seed=0)
    heads.add_task("edges", 3, seed=0)
    assert all(key.startswith(("tasks.depth.", "tasks.edges.")) for key in heads.state_dict())
    alone = head_of("aspp")
    assert torch.equal(heads.tasks["edges"].prediction.weight, alone.prediction.weight)
    assert heads.eval()(maps_of("aspp"), "depth", (10, 12)).shape == (2, 1, 10, 12)
    heads.remove_task("depth")
    assert list(heads.tasks) == ["edges"]


def test_unknown_head():
    with pytest.raises(UserError, match=r"model.head=fcn: choose deeplab_v3_plus or aspp"):
        head_layers("fcn")
