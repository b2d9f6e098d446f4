"""Adapters against the convolutions they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyscene.downstream.multitask.rcm.adapters import ParallelAdapter, SeriesAdapter


@pytest.fixture
def stem():
    """The first convolution of a ResNet-18."""
    return nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (224, 224)])
def test_parallel_adapter_of_a_strided_convolution(stem, size):
    """Bank plus a 1x1 convolution of the same stride; and a step of training, which must not crash the process."""
    adapter = ParallelAdapter(stem)
    adapter.add_task("edge")
    weight = adapter.tasks["edge"].weight
    nn.init.normal_(weight)
    adapter.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last)
    found = adapter(images, "edge")
    expected = stem(images) + F.conv2d(images, weight, stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for _ in range(3):
        adapter(images, "edge").square().mean().backward()
    # d mean(y^2) / dW = 2 / n sum y x^T over the positions that the stride visits.
    visited = images[:, :, ::2, ::2]
    gradient = torch.einsum("nohw,nihw->oi", found.detach(), visited) * 2 / found.numel()
    torch.testing.assert_close(weight.grad[:, :, 0, 0] / 3, gradient, rtol=1e-3, atol=1e-5)


def test_merged_adapters_are_single_convolutions(stem):
    images = torch.randn(1, 3, 32, 48)
    norm = nn.BatchNorm2d(64).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    for adapter in (ParallelAdapter(stem), SeriesAdapter(stem, norm)):
        adapter.add_task("edge")
        adapter.eval()
        with torch.no_grad():
            for parameter in adapter.tasks["edge"].parameters():
                parameter.normal_()
            weight, bias = adapter.merged("edge")
            bias = None if bias is None else bias.float()
            expected = F.conv2d(images, weight.float(), bias, stride=2, padding=3)
            torch.testing.assert_close(adapter(images, "edge"), expected, rtol=1e-3, atol=1e-3)


def test_a_convolution_that_is_not_padded_to_its_input_is_refused():
    with pytest.raises(ValueError, match="padded to the size"):
        ParallelAdapter(nn.Conv2d(3, 8, 3, bias=False))
