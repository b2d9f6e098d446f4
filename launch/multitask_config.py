"""Keys of ``polyscene multitask``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option, section
from polyscene.runtime.errors import UserError

from .pretrain_config import CheckpointConfig

INTERACTING = ("pad_net", "mti_net")
MULTI_SCALE_HEADS = ("aggregation", "semantic_fpn")

# Keys that may differ when a run is continued: they do not change the weights it computes.
HARMLESS = (
    "device",
    "data.workers",
    "checkpoint",
    "log",
    "max_steps",
    "evaluate.every_epochs",
)


@dataclass(frozen=True, kw_only=True)
class DenseDataConfig:
    """Images with labels for every pixel."""

    kind: Literal["nyud", "pascal", "folder"] = option(help="layout: NYUD_MT, PASCAL_MT, or a folder of your own")
    root: str = option(help="folder of the data set")
    train: str = option("train", help="list of the images to train on")
    val: str = option("val", help="list of the images to evaluate on")
    max_val: int | None = option(None, help="evaluate on so many images, spread evenly over the list; null: all")
    workers: int = option(4, help="processes that read and augment images, per training process")
    void_class: bool = option(False, help="nyud: train and judge void as a 41st class")
    depth_protocol: Literal["survey", "rcm"] = option("survey", help="RMSE over all pixels, or mean over images")
    saliency_protocol: Literal["rcm", "survey", "atrc"] = option("rcm", help="IoU (rcm, survey) or max F (atrc)")
    normals_axes: Literal["nyud", "camera"] = option("nyud", help="of stored normals: y, or z, into the scene")
    person_images_only: bool = option(False, help="train on images with people only (for the task parts)")


@dataclass(frozen=True, kw_only=True)
class RcmConfig:
    """Reparameterized convolutions."""

    init_images: str | None = option(
        None, help="images of Response Initialization: folder, or list of files; null: training images"
    )
    init_count: int | None = option(1000, help="at most so many of them, spread evenly; null: all")
    response_init: bool = option(True, help="Response Initialization (RI) of banks and modulators")
    normalized: bool = option(True, help="Normalized Feature Fusion (NFF)")
    reparameterize: Literal["spatial", "all"] = option(
        "spatial", help="convolutions that get modulators (or adapters): 3x3 and stem, or all"
    )
    rank: float | None = option(None, help="directions kept of every bank: share below 1, or number; null: all")


@dataclass(frozen=True, kw_only=True)
class MtiNetConfig:
    """MTI-Net."""

    fpm: bool = option(True, help="Feature Propagation Modules from coarse scales to fine ones")
    fpm_softmax: Literal["tasks", "published"] = option(
        "tasks", help="attention over the tasks, or over adjacent channels as in the published code"
    )
    fpm_narrowing: int = option(
        4, help="of the channels within an FPM: 4 in the published code, 1 in the thesis' costs"
    )


@dataclass(frozen=True, kw_only=True)
class PadNetConfig:
    """PAD-Net."""

    distillation: Literal["thesis", "published"] = option(
        "thesis", help="masked features, or the published code's masked second convolution of them"
    )
    width: int = option(256, help="channels of a task's features; a multiple of 4")


@dataclass(frozen=True, kw_only=True)
class DenseModelConfig:
    """Network."""

    kind: Literal[
        "single",
        "multi_task",
        "frozen",
        "task_norms",
        "task_convolutions",
        "series_adapters",
        "parallel_adapters",
        "rcm",
        "pad_net",
        "mti_net",
    ] = option("rcm", help="what the tasks share of the encoder, or how they interact")
    head: Literal["deeplab_v3_plus", "aspp", "aggregation", "semantic_fpn"] | None = option(
        None,
        help="of every task; aggregation and semantic_fpn (single, multi_task): on a backbone of four scales; null: "
        "deeplab_v3_plus, or what the kind has",
    )
    head_width: int = option(256, help="channels within the heads deeplab_v3_plus and aspp")
    output_stride: Literal[8, 16, 32] = option(16, help="image pixels per cell of the last stage, for those heads")
    scales: tuple[int, ...] = option((4, 8, 16, 32), help="backbone of four scales: strides of the maps that are used")
    pyramid_width: int = option(256, help="backbone of four scales, ResNet: channels of its feature pyramid")
    base: str | None = option(
        None, help="RUN or its model.safetensors: add the tasks to this model, whose other parts stay as they are"
    )
    rcm: RcmConfig = section(RcmConfig, help="reparameterized convolutions")
    mti_net: MtiNetConfig = section(MtiNetConfig, help="MTI-Net")
    pad_net: PadNetConfig = section(PadNetConfig, help="PAD-Net")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What a training image goes through."""

    recipe: Literal["rcm", "mti_net_nyud", "mti_net_pascal", "none"] = option(
        "rcm", help="rcm: scale, crop, flip; mti_net_*: zoom or turn, flip; none: stretched to the size"
    )
    size: tuple[int, int] = option(help="height and width that the network is trained on, pixels")


@dataclass(frozen=True, kw_only=True)
class DenseOptimConfig:
    """Optimiser and learning rate."""

    kind: Literal["sgd", "adam"] = option("sgd", help="optimiser")
    lr: float = option(0.005, help="learning rate at the start, for the stated global batch size")
    momentum: float = option(0.9, help="of SGD")
    weight_decay: float = option(1e-4, help="on all trained parameters")
    schedule: Literal["iteration", "epoch", "constant"] = option(
        "iteration", help="polynomial decay, a step an iteration or an epoch; or none"
    )
    power: float = option(0.9, help="of the polynomial decay")
    sync_batch_norm: bool = option(False, help="BatchNorm over the images of all processes, not of each")


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Weights of the tasks' losses, set anew at every step; task_weights multiply the losses before."""

    strategy: Literal["fixed", "uniform", "uncertainty", "gradnorm", "dwa", "dtp", "mgda", "similar_losses"] = option(
        "fixed", help="fixed: task_weights as they are; uniform: all 1; the others: thesis, section 3.2"
    )
    shared_layers: Literal["last", "all"] = option(
        "last", help="gradnorm, mgda: gradients of the last shared layers, or of all"
    )
    uncertainty_rate: float = option(0.01, help="uncertainty: learning rate of the noise")
    gradnorm_alpha: float = option(1.0, help="gradnorm: how strongly slow tasks are favoured; 1.5 in its paper")
    gradnorm_rate: float = option(0.025, help="gradnorm: learning rate of the weights")
    dwa_temperature: float = option(2.0, help="dwa: softness")
    dtp_focus: float = option(1.0, help="dtp: gamma")
    dtp_smoothing: float = option(0.1, help="dtp: weight of the newest KPI; 1 in the thesis")
    mgda_normalize: Literal["none", "l2", "loss", "loss+"] = option("none", help="mgda: what gradients are divided by")
    measure_iterations: int = option(100, help="similar_losses: steps that losses are measured for")
    measure_repeat: bool = option(False, help="similar_losses: measure again and again")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation at native resolution."""

    every_epochs: int | None = option(None, help="evaluate during training too, every n epochs; null: at the end only")
    stretch: tuple[int, int] | None = option(
        None, help="stretch images to this height and width (MTI-Net); null: pad them to the network's stride"
    )
    all_tasks: bool = option(False, help="with model.base: also evaluate the tasks it had")
    single: str | tuple[str, ...] | None = option(
        None, help="RUN, or [RUN, ...] of single-task models, for Delta (mean relative gain)"
    )
    front_ends: bool = option(
        False, help="mti_net, pad_net: at the end also judge the first predictions of every scale, auxiliary tasks too"
    )
    pictures: int = option(4, help="images whose predictions are drawn; 0: none")


@dataclass(frozen=True, kw_only=True)
class MultitaskLogConfig:
    """What is recorded."""

    every: int = option(50, help="steps between two lines of metrics.jsonl")
    tensorboard: bool = option(True, help="write TensorBoard scalars")


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """Transfer of a backbone to dense tasks: single-task, multi-task, adapters, RCM, PAD-Net, MTI-Net."""

    out: str = option(help="run directory; the same command continues it")
    overwrite: bool = option(False, help="remove an earlier run in out first")
    seed: int = option(0, help="of heads, order and augmentation")
    seeds: tuple[int, ...] | None = option(None, help="train once for each, in OUT/seed-N, and report mean and spread")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    precision: Literal["bf16", "fp32"] = option("bf16", help="of the network; losses and metrics are always fp32")
    weights: str | None = option(None, help="pretrained backbone: run directory, file of any known format, or random")
    arch: str | None = option(None, help="backbone; null: as the weights say")
    tasks: tuple[str, ...] | None = option(None, help="tasks of the data set, or paths of task files (.py)")
    task: str | None = option(None, help="one task, instead of tasks")
    auxiliary_tasks: tuple[str, ...] | None = option(
        None, help="mti_net, pad_net: more tasks to learn from, which only the front end predicts"
    )
    task_weights: dict | None = option(None, help="task -> weight of its loss; those not named: 1")
    batch_size: int = option(8, help="images per step, over all processes")
    iterations: int | None = option(None, help="length of the schedule in steps; 0: only evaluate model.base")
    epochs: float | None = option(None, help="length of the schedule in passes over the images, instead of iterations")
    max_steps: int | None = option(None, help="stop after so many steps of the schedule (smoke runs)")
    data: DenseDataConfig = section(DenseDataConfig, help="images and labels")
    model: DenseModelConfig = section(DenseModelConfig, help="network")
    augmentation: AugmentationConfig = section(AugmentationConfig, help="augmentation")
    balancing: BalancingConfig = section(BalancingConfig, help="balancing of the tasks' losses")
    optim: DenseOptimConfig = section(DenseOptimConfig, help="optimiser")
    evaluate: EvaluateConfig = section(EvaluateConfig, help="evaluation")
    checkpoint: CheckpointConfig = section(CheckpointConfig, help="saving")
    log: MultitaskLogConfig = section(MultitaskLogConfig, help="what is recorded")


def chosen_tasks(config: MultitaskConfig) -> tuple[str, ...]:
    """The tasks to train: ``task`` where it is given, else ``tasks``.

    Raises:
        UserError: neither is given.
    """
    if config.task is not None:
        return (config.task,)
    if not config.tasks:
        raise UserError("tasks names no task; give for example task=depth or tasks=[segmentation, depth]")
    return config.tasks


def auxiliary_tasks(config: MultitaskConfig) -> tuple[str, ...]:
    """The tasks that only a front end predicts."""
    return config.auxiliary_tasks or ()


def is_multi_scale(config: MultitaskConfig) -> bool:
    """Whether the model stands on a backbone of four scales."""
    return config.model.kind in INTERACTING or config.model.head in MULTI_SCALE_HEADS


def only_evaluates(config: MultitaskConfig) -> bool:
    """Whether nothing is to be trained."""
    return config.iterations == 0


def single_runs(config: MultitaskConfig) -> tuple[str, ...]:
    """The runs of single-task models that results are compared with."""
    named = config.evaluate.single
    return (named,) if isinstance(named, str) else named or ()
