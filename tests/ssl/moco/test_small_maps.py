"""Convolution of small maps against torch's, in double precision."""

import copy

import pytest
import torch
from torch import nn

from polyscene.ssl.moco.small_maps import SmallMapConv2d, convolve_small_maps

CASES = [  # side or sides of the map, kernel, stride, padding
    (1, 3, 1, 1),
    (2, 3, 1, 1),
    (3, 3, 1, 1),
    (3, 3, 2, 1),
    (2, 3, 2, 1),
    (3, 3, 1, 0),
    (3, 3, 1, 2),
    (2, 5, 1, 2),
    (4, 5, 3, 2),
    ((1, 3), 3, 1, 1),
    ((2, 3), (3, 5), (1, 2), (1, 2)),
]


def both(sides, kernel, stride, padding, channels=5, dtype=torch.float64):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 7, kernel, stride, padding, bias=False).to(dtype, memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    convolve_small_maps(nn.ModuleList([quick]))
    height, width = (sides, sides) if isinstance(sides, int) else sides
    x = torch.randn(4, channels, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return plain, quick, x


def result_and_gradients(layer, x, upstream=None):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(x)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) if upstream is None else upstream
    out.backward(upstream)
    return out.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case, monkeypatch):
    plain, quick, x = both(*case)
    expected = result_and_gradients(plain, x)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # must not be needed
    for ours, theirs in zip(result_and_gradients(quick, x), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout_in_and_channels_last_out(layout):
    plain, quick, x = both(3, 3, 1, 1)
    quick, x = quick.to(memory_format=layout), x.contiguous(memory_format=layout)
    upstream = torch.randn(4, 7, 3, 3, dtype=x.dtype).contiguous(memory_format=layout)
    for ours, theirs in zip(result_and_gradients(quick, x, upstream), result_and_gradients(plain, x, upstream)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert quick(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),  # a bias
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=3, bias=False),  # places that the kernel never brings onto the map
    ],
)
@pytest.mark.parametrize("side", [3, 4])
def test_other_convolutions_are_torchs_own(layer, side):
    x = torch.randn(2, 4, side, side)
    expected = layer(x)
    convolve_small_maps(layer)
    assert type(layer) is SmallMapConv2d
    assert torch.equal(layer(x), expected)


def test_larger_maps_are_torchs_own_and_too_small_ones_its_errors():
    plain, quick, _ = both(3, 3, 1, 0)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    assert torch.equal(quick(x), plain(x))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        quick(x[..., :2, :2])


def test_autocast_computes_in_bfloat16_and_leaves_gradients_in_float32():
    plain, quick, x = both(2, 3, 1, 1, channels=64, dtype=torch.float32)
    expected = result_and_gradients(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        out = quick(x)
    assert out.dtype == torch.bfloat16
    out, *gradients = result_under_autocast(quick, x)
    for ours, theirs in zip((out.float(), *gradients), expected):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def result_under_autocast(layer, x):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    return out.detach(), x.grad, layer.weight.grad


def test_state_and_parameters_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Sequential(nn.Conv2d(4, 4, 3)))
    before = dict(model.named_parameters())
    convolve_small_maps(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert sum(isinstance(layer, SmallMapConv2d) for layer in model.modules()) == 2
