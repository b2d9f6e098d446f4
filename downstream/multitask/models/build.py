"""Models by their options."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor

from polyscene.downstream.backbones import feature_maps
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights

from ..heads.build import TaskHeads, head_layers
from ..rcm.adapters import parallel_adapter_encoder, series_adapter_encoder, task_specific_encoder
from ..rcm.encoder import TaskEncoder
from ..rcm.moments import Moments
from ..rcm.network import REPARAMETERIZE, empty_rcm_encoder, rcm_encoder
from .base import DenseModel
from .per_task import TaskEncoderModel
from .shared import SharedEncoderModel

# Kind -> the convolutions and BatchNorms that every task has of its own (RCM, table 1).
_TASK_SPECIFIC = {
    "single": ("all", True),
    "frozen": ("none", False),
    "task_norms": ("none", True),
    "task_convolutions": ("all", False),
}
KINDS = (
    "single",
    "multi_task",
    "frozen",
    "task_norms",
    "task_convolutions",
    "series_adapters",
    "parallel_adapters",
    "rcm",
)


@dataclass(frozen=True)
class ModelOptions:
    """What decides the shape of a model, next to its backbone and tasks.

    Attributes:
        kind: one of `KINDS`. ``single``: a network of its own per task. ``multi_task``: an encoder that all tasks
            train together. ``frozen``: one that nobody trains. The others: frozen, with parts per task.
        head: one of `HEADS` in :mod:`..heads.build`.
        head_width: channels within the heads.
        output_stride: of the last stage: 8, 16 or 32.
        reparameterize: adapters and ``rcm``: ``spatial`` convolutions get one, or ``all``.
        normalized: ``rcm``: Normalized Feature Fusion.
        response_init: ``rcm``: Response Initialization.
        rank: ``rcm``: directions kept of each bank, a share below 1 or a number; None for all.

    Raises:
        UserError: a value that cannot be.
    """

    kind: str
    head: str = "deeplab_v3_plus"
    output_stride: int = 16
    reparameterize: str = "spatial"
    normalized: bool = True
    response_init: bool = True
    rank: float | None = None
    head_width: int = 256

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"model.kind={self.kind}: choose one of {', '.join(KINDS)}")
        head_layers(self.head)
        if self.output_stride not in (8, 16, 32):
            raise UserError(f"model.output_stride={self.output_stride}: choose 8, 16 or 32")
        if self.reparameterize not in REPARAMETERIZE:
            raise UserError(f"reparameterize={self.reparameterize}: choose {' or '.join(REPARAMETERIZE)}")
        if self.head_width < 1:
            raise UserError(f"model.head_width={self.head_width}: give a number of channels, 256 in the papers")
        if self.rank is not None:
            if not 0 < self.rank < math.inf or (self.rank >= 1 and self.rank != int(self.rank)):
                raise UserError(f"rank={self.rank}: give a share between 0 and 1 or a whole number of directions")
            if self.kind == "rcm" and not self.response_init:
                raise UserError(f"rank={self.rank} needs Response Initialization; set response_init=true")

    @property
    def needs_moments(self) -> bool:
        """Whether :func:`build_model` wants response moments."""
        return self.kind == "rcm" and self.response_init

    @property
    def independent_tasks(self) -> bool:
        """Whether every trained parameter belongs to one task, so that tasks can be added and merged."""
        return self.kind != "multi_task"

    @property
    def takes_tasks(self) -> bool:
        """Whether tasks can be added to a finished model."""
        return self.independent_tasks

    @property
    def multiple(self) -> int:
        """Images are padded to multiples of so many pixels."""
        return self.output_stride

    def decoder(self) -> str:
        """What stands on the encoder, in words."""
        return f"{self.head} of width {self.head_width}, output stride {self.output_stride}"


def build_model(
    options: ModelOptions,
    weights: BackboneWeights,
    channels: Mapping[str, int],
    moments: Mapping[str, Moments] | None = None,
    seed: int = 0,
    image_level: Collection[str] = (),
) -> DenseModel:
    """Make a model that starts from a pretrained backbone, on the CPU, in evaluation mode.

    The initial values of a task's head are a function of the seed and the task's name, whatever the other tasks are:
    a task that is added later or trained in a separate job starts with the same bits.

    Args:
        options: what kind of model.
        weights: the backbone.
        channels: task -> channels of its output; the tasks in their order.
        moments: response moments of these weights, for Response Initialization (``options.needs_moments``).
        seed: of the heads.
        image_level: those of the tasks that have one output an image.

    Raises:
        UserError: not a plain ResNet, a task name that cannot be used, moments of another network, or none.
    """
    if options.needs_moments and moments is None:
        raise UserError("Response Initialization needs response moments; give images, or set response_init=false")

    def task_encoder(layers: tuple[str, ...]) -> TaskEncoder:
        stride = options.output_stride
        if options.kind == "rcm":
            return rcm_encoder(
                weights,
                moments if options.response_init else None,
                layers=layers,
                output_stride=stride,
                reparameterize=options.reparameterize,
                normalized=options.normalized,
                rank=options.rank,
            )
        return _other_encoder(options, weights, layers)

    return _assemble(options, weights, channels, seed, image_level, task_encoder)


def empty_model(
    options: ModelOptions, arch: str, channels: Mapping[str, int], seed: int = 0, image_level: Collection[str] = ()
) -> DenseModel:
    """A model with the shapes of :func:`build_model`, to load a state into; the encoder's values are useless.

    Args:
        options: what kind of model.
        arch: timm name of the backbone.
        channels: task -> channels of its output.
        seed: of the heads, also of those added later.
        image_level: those of the tasks that have one output an image.

    Raises:
        UserError: not a plain ResNet, or a task name that cannot be used.
    """
    weights = BackboneWeights(arch, _random_state(arch), source_format="shapes only")

    def task_encoder(layers: tuple[str, ...]) -> TaskEncoder:
        if options.kind != "rcm":
            return _other_encoder(options, weights, layers)
        return empty_rcm_encoder(
            arch,
            layers=layers,
            output_stride=options.output_stride,
            reparameterize=options.reparameterize,
            normalized=options.normalized,
            rank=options.rank,
        )

    return _assemble(options, weights, channels, seed, image_level, task_encoder)


def _random_state(arch: str) -> dict[str, Tensor]:
    try:
        with torch.random.fork_rng(devices=[]):
            body = timm.create_model(arch, num_classes=0)
    except RuntimeError as error:
        raise UserError(f"arch={arch}: timm {timm.__version__} does not know this network") from error
    if not isinstance(body, ResNet):
        raise UserError(f"arch={arch} is not a ResNet; dense models need one, for example resnet18")
    return body.state_dict()


def _other_encoder(options: ModelOptions, weights: BackboneWeights, layers: tuple[str, ...]) -> TaskEncoder:
    """The encoder of every kind but ``rcm`` and ``multi_task``."""
    stride, which = options.output_stride, options.reparameterize
    if options.kind == "series_adapters":
        return series_adapter_encoder(weights, layers=layers, output_stride=stride, reparameterize=which)
    if options.kind == "parallel_adapters":
        return parallel_adapter_encoder(weights, layers=layers, output_stride=stride, reparameterize=which)
    convolutions, norms = _TASK_SPECIFIC[options.kind]
    return task_specific_encoder(weights, convolutions=convolutions, norms=norms, layers=layers, output_stride=stride)


def _assemble(
    options: ModelOptions,
    weights: BackboneWeights,
    channels: Mapping[str, int],
    seed: int,
    image_level: Collection[str],
    task_encoder: Callable[[tuple[str, ...]], TaskEncoder],
) -> DenseModel:
    layers = head_layers(options.head)
    with torch.random.fork_rng(devices=[]):  # modules are made with random values before they are filled
        if options.kind == "multi_task":
            encoder = feature_maps(weights, layers=layers, output_stride=options.output_stride)
        else:
            encoder = task_encoder(layers)
    heads = TaskHeads(options.head, encoder.channels, encoder.strides, options.head_width)
    make = SharedEncoderModel if options.kind == "multi_task" else TaskEncoderModel
    return make(encoder, heads, channels, seed, image_level).eval()
