"""Feature propagation, distillation and the heads against formulas written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyscene.downstream.multitask.mti_net.aggregation import AggregationHead
from polyscene.downstream.multitask.mti_net.blocks import initialise_by_name
from polyscene.downstream.multitask.mti_net.distillation import Distillation
from polyscene.downstream.multitask.mti_net.fpm import FeaturePropagation
from polyscene.downstream.multitask.mti_net.semantic_fpn import SemanticFPNHead

TASKS = ("a", "b", "c")
WIDTH = 8


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return {task: torch.randn(2, WIDTH, 5, 7, generator=generator) for task in TASKS}


def module(part):
    initialise_by_name(part, "part", 0)
    return part.eval()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_mask_sums_to_one_over_the_tasks(features, memory):
    fpm = module(FeaturePropagation(TASKS, WIDTH))
    fpm.attention[2].weight.mul_(3)  # far from uniform
    joined = torch.cat(list(features.values()), 1).contiguous(memory_format=memory)
    mask = fpm.mask(joined)
    parts = mask.chunk(3, dim=1)  # the channels of a task are those of its features in the concatenation
    assert torch.allclose(sum(parts), torch.ones(2, WIDTH, 5, 7), atol=1e-6)
    assert all((part > 0).all() for part in parts)
    assert mask.std() > 0.1
    scores = torch.stack(fpm.attention(joined).chunk(3, dim=1))
    assert torch.allclose(torch.stack(parts), scores.softmax(0), atol=1e-6)
    assert mask.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_published_mask_sums_to_one_over_adjacent_channels_instead(features):
    fpm = module(FeaturePropagation(TASKS, WIDTH, softmax="published"))
    fpm.attention[2].weight.mul_(10)
    mask = fpm.mask(torch.cat(list(features.values()), 1))
    for start in range(0, 3 * WIDTH, 3):
        assert torch.allclose(mask[:, start : start + 3].sum(1), torch.ones(2, 5, 7), atol=1e-6)
    assert not torch.allclose(sum(mask.chunk(3, dim=1)), torch.ones(2, WIDTH, 5, 7), atol=0.1)


@torch.no_grad()
def test_refined_features_are_a_gated_residual(features):
    fpm = module(FeaturePropagation(TASKS, WIDTH))
    joined = torch.cat(list(features.values()), 1)
    shared = fpm.reduce(joined * fpm.mask(joined))
    for task, refined in fpm(features).items():
        gate = fpm.gates[task]
        squeezed = shared.mean((2, 3))
        hidden = F.relu(F.linear(squeezed, gate.fc1.weight.flatten(1), gate.fc1.bias))
        scale = F.linear(hidden, gate.fc2.weight.flatten(1), gate.fc2.bias).sigmoid()
        assert torch.allclose(refined, features[task] + shared * scale[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(("narrowing", "within"), [(4, 6), (1, 24)])
def test_width_within_the_harmonisation(narrowing, within):
    fpm = FeaturePropagation(TASKS, WIDTH, narrowing=narrowing)
    assert fpm.attention[2].in_channels == within
    assert fpm.attention[2].out_channels == 24
    with pytest.raises(ValueError, match="narrowing=0"):
        FeaturePropagation(TASKS, WIDTH, narrowing=0)
    with pytest.raises(ValueError, match="softmax=x"):
        FeaturePropagation(TASKS, WIDTH, softmax="x")


@pytest.mark.parametrize("transform", [True, False])
@torch.no_grad()
def test_distillation_is_the_equation(features, transform):
    part = module(Distillation(("a", "c"), TASKS, WIDTH, transform))
    expected = features["c"]
    for other in ("a", "b"):
        attention = part.tasks["c"][other]
        mask = 1 / (1 + torch.exp(-F.conv2d(features[other], attention.mask.weight, padding=1)))
        value = features[other]
        if transform:
            value = F.conv2d(value, attention.transform.weight, padding=1)
        expected = expected + mask * value
    assert torch.allclose(part(features, "c"), expected, atol=1e-5)
    convolutions = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 2 * 2 * (2 if transform else 1)
    assert list(part.tasks) == ["a", "c"]


@torch.no_grad()
def test_one_task_has_nothing_to_distil(features):
    part = Distillation(("a",), ("a",), WIDTH)
    assert torch.equal(part(features, "a"), features["a"])


@torch.no_grad()
def test_aggregation_is_a_linear_map_of_all_scales_together():
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    head = module(AggregationHead((4, 6), 3))
    up = F.interpolate(maps[1], size=(8, 8), mode="bilinear", align_corners=False)
    joined = torch.cat([maps[0], up], 1)
    hidden = head.fuse.join.norm(F.conv2d(joined, head.fuse.join.convolution.weight)).relu()
    low = F.conv2d(hidden, head.prediction.weight, head.prediction.bias)
    expected = F.interpolate(low, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(head(maps, (32, 32)), expected, atol=1e-6)


@torch.no_grad()
def test_semantic_fpn_doubles_every_map_up_to_the_finest():
    maps = [torch.randn(1, 4, 13, 19), torch.randn(1, 4, 7, 10), torch.randn(1, 4, 4, 5), torch.randn(1, 4, 2, 3)]
    head = module(SemanticFPNHead((4,) * 4, (4, 8, 16, 32), 3, width=8))
    assert [len(steps) for steps in head.climb] == [1, 1, 2, 3]
    total = head.climb[0][0](maps[0])
    sizes = {8: (13, 19), 16: (7, 10), 32: (4, 5)}
    for place, stride in ((1, 8), (2, 16), (3, 32)):
        x = maps[place]
        for step in head.climb[place]:
            x = F.interpolate(step(x), size=sizes[stride], mode="bilinear", align_corners=False)
            stride //= 2
        total = total + x
    expected = F.interpolate(head.prediction(total), size=(50, 75), mode="bilinear", align_corners=False)
    assert torch.allclose(head(maps, (50, 75)), expected, atol=1e-5)


def test_initial_values_depend_on_names_and_seed():
    def weights(tasks, seed):
        part = Distillation(("a",), tasks, WIDTH)
        initialise_by_name(part, "part", seed)
        return part.tasks["a"]["c"].mask.weight

    assert torch.equal(weights(("a", "c"), 0), weights(TASKS, 0))
    assert not torch.equal(weights(("a", "c"), 0), weights(("a", "c"), 1))
    spread = weights(TASKS, 0).std().item()
    assert spread == pytest.approx((2 / (9 * WIDTH)) ** 0.5, rel=0.1)
