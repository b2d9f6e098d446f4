"""Networks of chapter 5 of the thesis by their options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

from ..models.base import DenseModel
from .aggregation import AggregationHead
from .backbones import PYRAMID_WIDTH, STRIDES, MultiScaleMaps, multi_scale_maps, random_backbone
from .baselines import SingleTaskNetworks, multi_task_baseline
from .fpm import NARROWING, SOFTMAXES
from .heads import MultiScaleHeads
from .mti_net import MTINet
from .pad_net import DISTILLATIONS, PADNet
from .semantic_fpn import SemanticFPNHead

KINDS = ("single", "multi_task", "pad_net", "mti_net")
INTERACTING = ("pad_net", "mti_net")
HEADS = ("aggregation", "semantic_fpn")


@dataclass(frozen=True)
class MultiScaleOptions:
    """What decides the shape of a network, next to its backbone and tasks.

    Attributes:
        kind: one of `KINDS`.
        scales: strides of the maps that are used, ascending.
        pyramid_width: ResNets: channels of the feature pyramid.
        head: ``single`` and ``multi_task``: one of `HEADS`. The thesis has ``aggregation`` on HRNet; its costs on a
            feature pyramid are those of ``semantic_fpn``.
        fpm: ``mti_net``: whether features are propagated from coarse to fine scales.
        fpm_softmax: ``mti_net``: ``tasks`` or ``published``.
        fpm_narrowing: ``mti_net``: 4 as in the published code; 1 has the costs that the thesis states.
        distillation: ``pad_net``: ``thesis`` or ``published``.
        width: ``pad_net``: channels of the features of a task.

    Raises:
        UserError: a value that cannot be.
    """

    kind: str
    scales: tuple[int, ...] = STRIDES
    pyramid_width: int = PYRAMID_WIDTH
    head: str = "aggregation"
    fpm: bool = True
    fpm_softmax: str = "tasks"
    fpm_narrowing: int = NARROWING
    distillation: str = "thesis"
    width: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # JSON has lists
        choices = (
            ("kind", self.kind, KINDS),
            ("head", self.head, HEADS),
            ("mti_net.fpm_softmax", self.fpm_softmax, SOFTMAXES),
            ("pad_net.distillation", self.distillation, DISTILLATIONS),
        )
        for key, value, known in choices:
            if value not in known:
                raise UserError(f"model.{key}={value}: choose one of {', '.join(known)}")
        if not self.scales or self.scales != tuple(stride for stride in STRIDES if stride in self.scales):
            raise UserError(f"model.scales={list(self.scales)}: choose from {list(STRIDES)}, in this order")
        for key, value in (("pyramid_width", self.pyramid_width), ("mti_net.fpm_narrowing", self.fpm_narrowing)):
            if value < 1:
                raise UserError(f"model.{key}={value}: give 1 or more")
        if self.width < 4 or self.width % 4:
            raise UserError(f"model.pad_net.width={self.width}: give a multiple of 4, 256 in the published code")

    @property
    def interacts(self) -> bool:
        """Whether tasks use each other's features, so that there can be auxiliary ones."""
        return self.kind in INTERACTING

    @property
    def needs_moments(self) -> bool:
        """Never: there is no Response Initialization."""
        return False

    @property
    def independent_tasks(self) -> bool:
        """Whether every trained parameter belongs to one task, so that separate jobs can be merged."""
        return self.kind == "single"

    @property
    def takes_tasks(self) -> bool:
        """Never: the start values of the backbone are not kept for tasks to come."""
        return False

    @property
    def multiple(self) -> int:
        """Images are padded to multiples of so many pixels: those that all scales divide."""
        return STRIDES[-1]

    def decoder(self) -> str:
        """What stands on the encoder, in words."""
        scales = ", ".join(f"1/{stride}" for stride in self.scales)
        if self.kind == "mti_net":
            propagation = f"softmax over {self.fpm_softmax}" if self.fpm_softmax == "tasks" else "published softmax"
            return f"scales {scales}, " + (f"feature propagation ({propagation})" if self.fpm else "no propagation")
        if self.kind == "pad_net":
            return f"scales {scales} fused, {self.distillation} distillation of width {self.width}"
        return f"scales {scales}, {self.head} heads"


def build_multi_scale_model(
    options: MultiScaleOptions,
    weights: BackboneWeights,
    channels: Mapping[str, int],
    auxiliary: Mapping[str, int] | None = None,
    seed: int = 0,
    image_level: Collection[str] = (),
) -> DenseModel:
    """Make a network that starts from a pretrained backbone, on the CPU, in evaluation mode.

    Args:
        options: what kind of network.
        weights: of a ResNet or an HRNet.
        channels: main task -> channels of its output; the tasks in their order.
        auxiliary: task that only the front end predicts -> channels of its output.
        seed: of all initial values but the backbone's.
        image_level: those of the main tasks that have one output an image.

    Raises:
        UserError: a backbone without four scales, a task name that cannot be used, auxiliary tasks for a network
            without a front end, or no dense main task for one with it.
    """
    encoder = multi_scale_maps(weights, strides=options.scales, pyramid_width=options.pyramid_width, seed=seed)
    if options.kind == "mti_net":
        model: DenseModel = MTINet(
            encoder,
            channels,
            auxiliary,
            fpm=options.fpm,
            fpm_softmax=options.fpm_softmax,
            fpm_narrowing=options.fpm_narrowing,
            head_seed=seed,
            image_level=image_level,
        )
    elif options.kind == "pad_net":
        model = PADNet(
            encoder,
            channels,
            auxiliary,
            distillation=options.distillation,
            width=options.width,
            head_seed=seed,
            image_level=image_level,
        )
    elif auxiliary:
        raise UserError(f"model.kind={options.kind} has no auxiliary tasks ({', '.join(auxiliary)}); use mti_net")
    elif options.kind == "multi_task":
        model = multi_task_baseline(encoder, _baseline_heads(options.head, encoder), channels, seed, image_level)
    else:
        model = SingleTaskNetworks(encoder, _baseline_heads(options.head, encoder), channels, seed, image_level)
    return model.eval()


def empty_multi_scale_model(
    options: MultiScaleOptions,
    arch: str,
    channels: Mapping[str, int],
    auxiliary: Mapping[str, int] | None = None,
    seed: int = 0,
    image_level: Collection[str] = (),
) -> DenseModel:
    """A network with the shapes of :func:`build_multi_scale_model`, to load a state into; its values are useless.

    Raises:
        UserError: as there.
    """
    return build_multi_scale_model(options, random_backbone(arch, 0), channels, auxiliary, seed, image_level)


def _baseline_heads(kind: str, encoder: MultiScaleMaps) -> MultiScaleHeads:
    if kind == "semantic_fpn":
        return MultiScaleHeads(partial(SemanticFPNHead, encoder.channels, encoder.strides), encoder.channels)
    return MultiScaleHeads(partial(AggregationHead, encoder.channels), encoder.channels)
