"""Convolution of maps that are no larger than the kernel, without the products with the padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d` that is quicker on a CPU where a map has at most the size of the kernel.

    The last stage of a ResNet sees maps of 2 x 2 to 3 x 3 for crops of 48 to 96 pixels: of the nine products of a 3 x 3
    kernel four or five meet the image, the others padding. Here the former alone are computed, as products of matrices
    that lie in channels-last memory as they are. A general convolution also reorders its weights at every call, which
    for so few pixels costs as much as the products do. On larger maps, and elsewhere than on a CPU, this is
    `nn.Conv2d`. Under autocast to bfloat16 the partial sums, two or three, are rounded one by one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), channels last."""
        if not self._is_quicker_for(x):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _SmallMapConvolution.apply(x, weight, self.stride, self.padding)

    def _is_quicker_for(self, x: Tensor) -> bool:
        plain = self.bias is None and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not (plain and isinstance(self.padding, tuple) and x.device.type == "cpu" and x.ndim == 4):
            return False
        sides = zip(x.shape[-2:], self.kernel_size, self.padding)
        return self.kernel_size != (1, 1) and all(p < k <= size + 2 * p and size <= k for size, k, p in sides)


def convolve_small_maps(module: nn.Module) -> None:
    """Make every plain convolution of a module a :class:`SmallMapConv2d`; parameters and state-dict keys stay."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = SmallMapConv2d


class _Product(NamedTuple):
    """A row of the kernel that lies on rows of the map, for some places of one column of the output."""

    places: slice  # rows of the output, all in column `column`
    column: int
    rows: slice  # of the map, as many
    pixels: slice  # of each of them, channels counted
    kernel_row: int
    taps: slice  # of it, channels counted


class _SmallMapConvolution(torch.autograd.Function):
    """A product of matrices for each column of the output and each row of the kernel.

    With the images within the rows of the map, (H, N, W * C), the pixels under a row of the kernel are a matrix for all
    images, and for all places of a column of the output; and so are the taps, (O, W' * C), that lie on them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        down, across = map(_overlaps, x.shape[-2:], weight.shape[-2:], stride, padding)
        ctx.channels = x.shape[1]
        ctx.products = list(_products(down, across, ctx.channels))
        rows, kernel = x.permute(2, 0, 3, 1).flatten(2).contiguous(), weight.permute(0, 2, 3, 1).flatten(2).contiguous()
        ctx.save_for_backward(rows, kernel)
        out = x.new_zeros((len(down), x.shape[0], len(across), weight.shape[0]))
        for places, column, at, pixels, kernel_row, taps in ctx.products:
            _matrix(out[places, :, column]).addmm_(_matrix(rows[at, :, pixels]), kernel[:, kernel_row, taps].T)
        return out.permute(1, 3, 0, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, kernel = ctx.saved_tensors
        outer = gradients[0].permute(2, 0, 3, 1).contiguous()
        for_rows, for_kernel = torch.zeros_like(rows), torch.zeros_like(kernel)
        for places, column, at, pixels, kernel_row, taps in ctx.products:
            arriving = _matrix(outer[places, :, column])
            _matrix(for_rows[at, :, pixels]).addmm_(arriving, kernel[:, kernel_row, taps])
            for_kernel[:, kernel_row, taps].addmm_(arriving.T, _matrix(rows[at, :, pixels]))
        for_x = for_rows.unflatten(2, (-1, ctx.channels)).permute(1, 3, 0, 2)
        for_weight = for_kernel.unflatten(2, (-1, ctx.channels)).permute(0, 3, 1, 2)
        return for_x.contiguous(memory_format=torch.channels_last), for_weight, None, None


class _Overlap(NamedTuple):
    """Where the kernel meets the map for one place of the output, along one axis."""

    first: int  # of the map
    tap: int  # of the kernel that lies there
    count: int


def _overlaps(size: int, kernel: int, stride: int, padding: int) -> list[_Overlap]:
    """One for each place of the output."""
    found = []
    for start in range(-padding, size + padding - kernel + 1, stride):
        first = max(start, 0)
        found.append(_Overlap(first, first - start, min(start + kernel, size) - first))
    return found


def _products(down: list[_Overlap], across: list[_Overlap], channels: int) -> Iterator[_Product]:
    for kernel_row in range(max(d.tap + d.count for d in down)):
        for places, rows in _runs(down, kernel_row):
            for column, (first, tap, count) in enumerate(across):
                pixels = slice(first * channels, (first + count) * channels)
                taps = slice(tap * channels, (tap + count) * channels)
                yield _Product(places, column, rows, pixels, kernel_row, taps)


def _runs(down: list[_Overlap], kernel_row: int) -> Iterator[tuple[slice, slice]]:
    """Places of the output where a row of the kernel lies on the map, and the rows there: runs without a gap."""
    found = [(i, first + kernel_row - tap) for i, (first, tap, n) in enumerate(down) if tap <= kernel_row < tap + n]
    while found:
        i, row = found[0]
        length = next((n for n, pair in enumerate(found) if pair != (i + n, row + n)), len(found))
        yield slice(i, i + length), slice(row, row + length)
        found = found[length:]


def _matrix(x: Tensor) -> Tensor:
    """(H, N, C) as (H * N, C), in the same memory."""
    return x.view(-1, x.shape[-1])
