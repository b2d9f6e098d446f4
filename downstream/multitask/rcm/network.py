"""The RCM encoder: a ResNet whose convolutions are a frozen filter bank and modulators per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

from .encoder import Replace, TaskEncoder, build_encoder
from .layer import ReparameterizedConvolution
from .moments import Moments
from .pairs import Pair, convolution_pairs
from .per_task import TaskConvolution, TaskNorm
from .response_init import resolve_rank, response_basis

REPARAMETERIZE = ("spatial", "all")

# Bank (r, C_in, k, k), modulators (C_out, r) and lost mean (C_out,) of a convolution.
Factors = tuple[Tensor, Tensor, Tensor]


def is_adapted(pair: Pair, reparameterize: str) -> bool:
    """Whether a convolution gets modulators: ``spatial`` means larger than 1x1, ``all`` every one.

    Raises:
        ValueError: another word.
    """
    if reparameterize not in REPARAMETERIZE:
        raise ValueError(f"reparameterize={reparameterize!r}: choose {' or '.join(REPARAMETERIZE)}")
    return reparameterize == "all" or pair.role == "spatial"


def adapted_convolutions(body: ResNet, reparameterize: str) -> list[str]:
    """Names of the convolutions that get modulators: those whose response moments are needed.

    Raises:
        UserError: not a ResNet of plain blocks.
        ValueError: another word than in ``REPARAMETERIZE``.
    """
    return [pair.convolution for pair in convolution_pairs(body) if is_adapted(pair, reparameterize)]


def other_convolution(pair: Pair, convolution: nn.Conv2d) -> nn.Module:
    """What a convolution without modulators becomes: shortcuts a trained copy per task, other 1x1 frozen."""
    return TaskConvolution(convolution) if pair.role == "downsample" else convolution


def check_groups(pair: Pair, convolution: nn.Conv2d) -> None:
    """Refuse grouped convolutions: a modulator mixes all channels.

    Raises:
        UserError: it has groups.
    """
    if convolution.groups != 1:
        raise UserError(f"'{pair.convolution}' of this backbone has {convolution.groups} groups; use a plain ResNet")


def rcm_encoder(
    weights: BackboneWeights,
    moments: Mapping[str, Moments] | None = None,
    *,
    layers: Sequence[str] = ("layer1", "layer4"),
    output_stride: int = 16,
    reparameterize: str = "spatial",
    normalized: bool = True,
    rank: float | None = None,
) -> TaskEncoder:
    """Build the encoder of RCM and of its ablations (paper, table 2), without tasks.

    ======================  =========  ==============
    Ablation                `moments`  `normalized`
    ======================  =========  ==============
    RC                      no         False
    RC + NFF                no         True
    RC + RI                 yes        False
    RC + RI + NFF = RCM     yes        True
    ======================  =========  ==============

    Every task starts as the network of ``weights``: exactly so at full rank.

    Args:
        weights: a ResNet's weights; without Response Initialization the filter bank is its filters and ``W_t = I``.
        moments: Response Initialization from the moments of these weights' responses
            (:func:`.moments.response_moments` of the un-dilated network).
        layers: stages whose maps are wanted.
        output_stride: 8, 16 or 32, by dilation.
        reparameterize: ``spatial``: the stem and all filters larger than 1x1, as in the authors' code; 1x1
            convolutions of shortcuts are then trained copies per task, other 1x1 convolutions frozen with a
            BatchNorm per task. ``all``: every convolution, as in the paper.
        normalized: Normalized Feature Fusion.
        rank: directions kept of each bank, a share (< 1) or a number; None keeps all. Needs ``moments``. The lost
            mean is restored in the following BatchNorm.

    Raises:
        UserError: not a plain ResNet, or moments of another network.
        ValueError: a rank without moments, or a wrong word or number.
    """
    if rank is not None and moments is None:
        raise ValueError("a reduced rank needs Response Initialization; give moments or leave rank out")

    def factors(pair: Pair, convolution: nn.Conv2d) -> Factors:
        return _plain(convolution, None) if moments is None else _initialised(pair, convolution, moments, rank)

    replace = _replacement(factors, reparameterize, normalized)
    return build_encoder(weights, layers=layers, output_stride=output_stride, replace=replace)


def empty_rcm_encoder(
    arch: str,
    *,
    layers: Sequence[str] = ("layer1", "layer4"),
    output_stride: int = 16,
    reparameterize: str = "spatial",
    normalized: bool = True,
    rank: float | None = None,
) -> TaskEncoder:
    """An encoder with the shapes of :func:`rcm_encoder`, to be filled by :func:`.state.load_tasks`; values are useless.

    Raises:
        UserError: not a plain ResNet.
        ValueError: a wrong word or number.
    """
    with torch.random.fork_rng(devices=[]):
        state = timm.create_model(arch, num_classes=0).state_dict()

    def factors(pair: Pair, convolution: nn.Conv2d) -> Factors:
        return _plain(convolution, rank)

    replace = _replacement(factors, reparameterize, normalized)
    weights = BackboneWeights(arch, state, source_format="shapes only")
    return build_encoder(weights, layers=layers, output_stride=output_stride, replace=replace)


def _replacement(factors: Callable[[Pair, nn.Conv2d], Factors], reparameterize: str, normalized: bool) -> Replace:
    """Put reparameterized convolutions and BatchNorms per task into a ResNet."""

    def replace(pair: Pair, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
        if not is_adapted(pair, reparameterize):
            return other_convolution(pair, convolution), TaskNorm(norm)
        check_groups(pair, convolution)
        bank, matrix, lost = factors(pair, convolution)
        norm.running_mean -= lost.to(norm.running_mean)
        return ReparameterizedConvolution(bank, matrix, convolution, normalized=normalized), TaskNorm(norm)

    return replace


def _plain(convolution: nn.Conv2d, rank: float | None) -> Factors:
    """The convolution's own filters and ``W_t = I``."""
    width = convolution.out_channels
    kept = resolve_rank(rank, width)
    return convolution.weight[:kept], torch.eye(width, kept), torch.zeros(width)


def _initialised(pair: Pair, convolution: nn.Conv2d, moments: Mapping[str, Moments], rank: float | None) -> Factors:
    """Response Initialization of one convolution."""
    found = moments.get(pair.convolution)
    if found is None or found.total.numel() != convolution.out_channels:
        raise UserError(f"the response moments do not fit '{pair.convolution}'; compute them again from these weights")
    basis = response_basis(found)
    kept = resolve_rank(rank, convolution.out_channels)
    return *basis.factors(convolution.weight, kept), basis.lost_mean(kept)
