"""Parts that all heads are made of, and how they are initialised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; keeps height and width."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H, W)."""
        return F.relu(self.norm(self.convolution(x)))


class PooledNorm(nn.BatchNorm2d):
    """BatchNorm of (N, C, 1, 1) vectors that also trains on a batch of one image.

    One value a channel has no variance: BatchNorm refuses it, and would leave nothing of it. Such a batch is
    normalised with the running statistics and does not change them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, 1, 1) -> the same shape."""
        if self.training and input.shape[0] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *size), bilinear, borders of the maps aligned with those of the image."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def initialise(head: nn.Module, prediction: nn.Conv2d, generator: torch.Generator) -> None:
    """Fill a new head: He's normal distribution (fan out), BatchNorms 1 and 0, predictions close to 0.

    The last layer gets weights of standard deviation 0.01 and no bias, so that no task starts with large outputs.

    Args:
        head: a head on the CPU.
        prediction: its last layer.
        generator: the only source of its values.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(prediction.weight, std=0.01, generator=generator)
