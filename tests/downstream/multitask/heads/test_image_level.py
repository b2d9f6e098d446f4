"""The head of image-level tasks."""

import pytest
import torch

from polyscene.downstream.multitask.heads.build import HEADS, TaskHeads, head_layers
from polyscene.downstream.multitask.heads.image_level import ImageLevelHead


@torch.no_grad()
def test_every_cell_counts_the_same():
    head = ImageLevelHead((2,), 1)
    head.prediction.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
    head.prediction.bias.fill_(0.5)
    coarse = torch.zeros(1, 2, 2, 3)
    coarse[0, 0, 1, 2], coarse[0, 1, 0, 0] = 6.0, 3.0
    fine = torch.full((1, 7, 4, 6), 9.0)  # finer than the maps that are pooled
    assert head([fine, coarse], (64, 96)).tolist() == [[[[0.5 + 6 / 6 - 2 * 3 / 6]]]]
    moved = coarse.flip(3).roll(1, 2)
    assert torch.equal(head([moved], (1, 1)), head([coarse], (64, 96)))


def test_maps_of_several_scales_count_the_same_whatever_their_size():
    head = ImageLevelHead((2, 3), 4)
    maps = [torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4)]
    blown = [torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest") for x in maps]
    torch.testing.assert_close(head(blown, (1, 1)), head(maps, (1, 1)))


@pytest.mark.parametrize("kind", HEADS)
def test_beside_dense_heads(kind):
    inputs, strides = ((8, 16), (4, 16)) if len(head_layers(kind)) == 2 else ((16,), (16,))
    heads = TaskHeads(kind, inputs, strides, 8)
    heads.add_task("scene", 5, seed=0, image_level=True)
    heads.add_task("edges", 1, seed=0)
    maps = [torch.randn(2, width, 64 // stride, 64 // stride) for width, stride in zip(inputs, strides)]
    assert heads(maps, "scene", (64, 64)).shape == (2, 5, 1, 1)
    assert heads(maps, "edges", (64, 64)).shape == (2, 1, 64, 64)
    assert sum(p.numel() for p in heads.tasks["scene"].parameters()) == 16 * 5 + 5
    again = TaskHeads(kind, inputs, strides, 8)
    again.add_task("scene", 5, seed=0, image_level=True)
    first, second = heads.tasks["scene"].prediction, again.tasks["scene"].prediction
    assert torch.equal(first.weight, second.weight)
    assert first.weight.std() < 0.02
    assert not first.bias.any()


def test_output_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert ImageLevelHead((2,), 3)([torch.randn(2, 2, 4, 4)], (8, 8)).dtype == torch.float32
