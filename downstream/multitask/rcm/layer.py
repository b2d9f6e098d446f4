"""The reparameterized convolution: a frozen filter bank that every task recombines in its own way.

Kanakis et al., "Reparameterizing Convolutions for Incremental Multi-Task Learning without Task Interference",
ECCV 2020, section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .per_task import TaskModule


class ReparameterizedConvolution(TaskModule):
    """``y = W_t * (W_s * x)``: shared bank ``W_s``, a 1x1 modulator ``W_t`` per task, no bias (paper, figure 2b-c).

    Attributes:
        bank: (R, C_in, k, k) filters, never trained; R = C_out at full rank.
    """

    kind = "modulators"

    def __init__(self, bank: Tensor, modulators: Tensor, like: nn.Conv2d, *, normalized: bool):
        """Build the layer without any task.

        Args:
            bank: (R, C_in, k, k).
            modulators: (C_out, R), what ``W_t`` of a new task is.
            like: the convolution that is replaced; its stride, padding and dilation are taken.
            normalized: Normalized Feature Fusion: rows of ``W_t`` are trained as direction and norm.

        Raises:
            ValueError: `like` has groups or a bias.
        """
        if like.groups != 1 or like.bias is not None:
            raise ValueError("only convolutions without groups and bias can be reparameterized")
        super().__init__(modulator(modulators, normalized=normalized))
        # No parameter that an optimiser could change, and no buffer that DistributedDataParallel would send around.
        self.bank = nn.Parameter(bank.detach().to(like.weight).clone(), requires_grad=False)
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, 1
        self.to(like.weight.device, like.weight.dtype)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        # detach: the bank stays as it is even if somebody asks for gradients of all parameters.
        response = F.conv2d(x, self.bank.detach(), None, self.stride, self.padding, self.dilation)
        return self.tasks[task](response)

    def merged(self, task: str) -> tuple[Tensor, None]:
        """``W_t W_s``: (C_out, C_in, k, k) float64, and no bias."""
        weight = self.tasks[task].weight.detach().double().flatten(1)
        return torch.einsum("or,rikl->oikl", weight, self.bank.double()), None

    def parameter_counts(self, task: str) -> dict[str, int]:
        """The matrix ``W_t`` as ``modulators``, the norms of its rows (NFF; folded away for use) as ``gains``."""
        total = sum(parameter.numel() for parameter in self.tasks[task].parameters())
        matrix = self.tasks[task].weight.numel()
        return {"modulators": matrix, "gains": total - matrix}


def modulator(matrix: Tensor, *, normalized: bool) -> nn.Conv2d:
    """A 1x1 convolution with the weights ``matrix`` (C_out, R).

    With ``normalized`` each row is ``w = g v / |v|`` (paper, equation 3), initialised as ``v = w`` and ``g = |w|``.
    """
    convolution = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(matrix.detach()[:, :, None, None])
    if normalized:
        weight_norm(convolution, dim=0)
        # A row of zeros (a dead channel at reduced rank) has no direction, and 0 / 0 would be NaN. Its norm stays 0.
        direction = convolution.parametrizations.weight.original1
        with torch.no_grad():
            empty = direction.flatten(1).norm(dim=1) == 0
            direction[empty] = direction.shape[1] ** -0.5
    return convolution
