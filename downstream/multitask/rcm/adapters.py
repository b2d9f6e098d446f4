"""What RCM is compared with: residual adapters, and encoders with some task-specific modules (paper, tables 1 and 3).

All have the interface of the RCM encoder and start as the pretrained network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyscene.runtime.weights import BackboneWeights

from .encoder import TaskEncoder, build_encoder
from .network import check_groups, is_adapted, other_convolution
from .pairs import Pair
from .per_task import TaskConvolution, TaskModule, TaskNorm

TASK_CONVOLUTIONS = ("none", "pointwise", "all")


class SeriesAdapter(TaskModule):
    """``y + W_t * BN_t(y)`` with the frozen response ``y = W_s * x`` (Rebuffi et al., 2017).

    The BatchNorm of the adapter sees what the one after the convolution saw, and starts with its running statistics;
    ``W_t`` starts at zero.
    """

    kind = "modulators"

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d):
        width = convolution.out_channels
        own_norm = copy.deepcopy(norm)
        nn.init.ones_(own_norm.weight)
        nn.init.zeros_(own_norm.bias)
        super().__init__(nn.Sequential(own_norm, _zero_convolution(width, width)))
        _take_bank(self, convolution)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        response = F.conv2d(x, self.bank.detach(), None, self.stride, self.padding, self.dilation)
        return response + self.tasks[task](response)

    def merged(self, task: str) -> tuple[Tensor, Tensor]:
        """The same map as one convolution, in evaluation mode: weight (C_out, C_in, k, k) and bias, float64."""
        norm, adapter = self.tasks[task]
        matrix = adapter.weight.detach().double().flatten(1)
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.detach().double() - scale * norm.running_mean.double()
        mixing = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device) + matrix * scale
        return torch.einsum("or,rikl->oikl", mixing, self.bank.double()), matrix @ shift

    def parameter_counts(self, task: str) -> dict[str, int]:
        """The matrix ``W_t`` as ``modulators``, the adapter's BatchNorm among the ``norms``."""
        norm, adapter = self.tasks[task]
        return {"modulators": adapter.weight.numel(), "norms": norm.weight.numel() + norm.bias.numel()}


class ParallelAdapter(TaskModule):
    """``W_s * x + W_t * x`` with a 1x1 ``W_t`` of the same stride (Rebuffi et al., 2018), which starts at zero."""

    kind = "modulators"

    def __init__(self, convolution: nn.Conv2d):
        same = tuple(d * (k - 1) // 2 for d, k in zip(convolution.dilation, convolution.kernel_size))
        if convolution.padding != same:
            raise ValueError("a parallel adapter needs a convolution that is padded to the size of its input")
        super().__init__(_zero_convolution(convolution.in_channels, convolution.out_channels))
        _take_bank(self, convolution)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        response = F.conv2d(x, self.bank.detach(), None, self.stride, self.padding, self.dilation)
        # Every n-th cell first, then a plain 1x1: oneDNN crashes in the weight gradient of a strided 1x1 convolution of
        # few channels, such as the stem's (torch 2.15 on a CPU with AVX-512).
        vertical, horizontal = self.stride
        return response + self.tasks[task](x[:, :, ::vertical, ::horizontal])

    def merged(self, task: str) -> tuple[Tensor, None]:
        """The same map as one convolution: the adapter is added to the filters' centre. Float64, no bias."""
        weight = self.bank.double().clone()
        rows, columns = weight.shape[2:]
        weight[:, :, rows // 2, columns // 2] += self.tasks[task].weight.detach().double().flatten(1)
        return weight, None


def series_adapter_encoder(
    weights: BackboneWeights,
    *,
    layers: Sequence[str] = ("layer1", "layer4"),
    output_stride: int = 16,
    reparameterize: str = "spatial",
) -> TaskEncoder:
    """Series residual adapters where RCM has modulators; everything else as in :func:`.network.rcm_encoder`.

    Raises:
        UserError: not a plain ResNet.
        ValueError: a wrong word or number.
    """
    return _adapter_encoder(weights, layers, output_stride, reparameterize, SeriesAdapter)


def parallel_adapter_encoder(
    weights: BackboneWeights,
    *,
    layers: Sequence[str] = ("layer1", "layer4"),
    output_stride: int = 16,
    reparameterize: str = "spatial",
) -> TaskEncoder:
    """Parallel residual adapters where RCM has modulators; everything else as in :func:`.network.rcm_encoder`.

    Raises:
        UserError: not a plain ResNet.
        ValueError: a wrong word or number.
    """
    return _adapter_encoder(weights, layers, output_stride, reparameterize, lambda conv, norm: ParallelAdapter(conv))


def task_specific_encoder(
    weights: BackboneWeights,
    *,
    convolutions: str,
    norms: bool,
    layers: Sequence[str] = ("layer1", "layer4"),
    output_stride: int = 16,
) -> TaskEncoder:
    """An encoder whose convolutions and BatchNorms are frozen or trained per task (paper, table 1).

    Frozen encoder: ``none``, False. Task-specific BNs: ``none``, True. Task-specific Convs: ``all``, False.
    A network per task: ``all``, True.

    Args:
        weights, layers, output_stride: see :func:`polyscene.downstream.backbones.feature_maps`.
        convolutions: which ones every task has of its own: ``none``, ``pointwise`` (1x1) or ``all``.
        norms: whether every task has BatchNorms of its own; frozen ones keep their statistics.

    Raises:
        UserError: not a ResNet of plain blocks.
        ValueError: a wrong word or number.
    """
    if convolutions not in TASK_CONVOLUTIONS:
        raise ValueError(f"convolutions={convolutions!r}: choose {', '.join(TASK_CONVOLUTIONS)}")

    def replace(pair: Pair, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
        own = convolutions == "all" or (convolutions == "pointwise" and pair.role != "spatial")
        return TaskConvolution(convolution) if own else convolution, TaskNorm(norm) if norms else norm

    return build_encoder(weights, layers=layers, output_stride=output_stride, replace=replace)


def _adapter_encoder(
    weights: BackboneWeights,
    layers: Sequence[str],
    output_stride: int,
    reparameterize: str,
    adapter: Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module],
) -> TaskEncoder:
    def replace(pair: Pair, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
        if not is_adapted(pair, reparameterize):
            return other_convolution(pair, convolution), TaskNorm(norm)
        check_groups(pair, convolution)
        return adapter(convolution, norm), TaskNorm(norm)

    return build_encoder(weights, layers=layers, output_stride=output_stride, replace=replace)


def _take_bank(module: TaskModule, convolution: nn.Conv2d) -> None:
    """Keep the convolution's filters in ``module`` as a frozen bank, with its geometry."""
    module.bank = nn.Parameter(convolution.weight.detach().clone(), requires_grad=False)
    module.stride, module.padding = convolution.stride, convolution.padding
    module.dilation, module.groups = convolution.dilation, 1


def _zero_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.zeros_(convolution.weight)
    return convolution
