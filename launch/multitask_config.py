"""Keys of ``polyscene multitask`` and the checks between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polyscene.runtime.config import option, section
from polyscene.runtime.errors import UserError

from .limits import check_above_zero, check_at_least
from .pretrain_config import CheckpointConfig

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
    ] = option("rcm", help="what the tasks share of the encoder")
    head: Literal["deeplab_v3_plus", "aspp"] = option("deeplab_v3_plus", help="of every task")
    head_width: int = option(256, help="channels within the heads")
    output_stride: Literal[8, 16, 32] = option(16, help="image pixels per cell of the last stage")
    base: str | None = option(
        None, help="RUN or its model.safetensors: add the tasks to this model, whose other parts stay as they are"
    )
    rcm: RcmConfig = section(RcmConfig, help="reparameterized convolutions")


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
    pictures: int = option(4, help="images whose predictions are drawn; 0: none")


@dataclass(frozen=True, kw_only=True)
class MultitaskLogConfig:
    """What is recorded."""

    every: int = option(50, help="steps between two lines of metrics.jsonl")
    tensorboard: bool = option(True, help="write TensorBoard scalars")


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig:
    """Transfer of a backbone to dense tasks: single-task, multi-task, adapters, RCM."""

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
    task_weights: dict | None = option(None, help="task -> weight of its loss; those not named: 1")
    batch_size: int = option(8, help="images per step, over all processes")
    iterations: int | None = option(None, help="length of the schedule in steps; 0: only evaluate model.base")
    epochs: float | None = option(None, help="length of the schedule in passes over the images, instead of iterations")
    max_steps: int | None = option(None, help="stop after so many steps of the schedule (smoke runs)")
    data: DenseDataConfig = section(DenseDataConfig, help="images and labels")
    model: DenseModelConfig = section(DenseModelConfig, help="network")
    augmentation: AugmentationConfig = section(AugmentationConfig, help="augmentation")
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


def only_evaluates(config: MultitaskConfig) -> bool:
    """Whether nothing is to be trained."""
    return config.iterations == 0


def single_runs(config: MultitaskConfig) -> tuple[str, ...]:
    """The runs of single-task models that results are compared with."""
    named = config.evaluate.single
    return (named,) if isinstance(named, str) else named or ()


def check_values(config: MultitaskConfig) -> None:
    """Refuse values that are of the right type but make no sense.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    chosen_tasks(config)
    _check_numbers(config)
    _check_length(config)
    _check_task_weights(config.task_weights)
    if config.seeds is not None and (not config.seeds or len(set(config.seeds)) < len(config.seeds)):
        raise UserError(f"seeds={list(config.seeds)} must be one or more different numbers; null for the one of seed")
    if not (config.checkpoint.every_steps or config.checkpoint.every_minutes):
        raise UserError("checkpoint.every_steps and checkpoint.every_minutes are both null; set one of them")
    model = config.model
    if config.weights is None and model.base is None:
        raise UserError("weights is required: a pretraining run, a weights file, or random; or set model.base=RUN")
    if model.base is not None and model.kind == "multi_task" and not only_evaluates(config):
        raise UserError("model.kind=multi_task: a shared encoder cannot take new tasks; model.base needs another kind")
    if model.rcm.rank is not None and model.kind == "rcm" and not model.rcm.response_init:
        raise UserError(f"model.rcm.rank={model.rcm.rank:g} needs model.rcm.response_init=true")
    if config.evaluate.all_tasks and model.base is None:
        raise UserError("evaluate.all_tasks=true needs model.base, the model whose tasks are evaluated too")
    smallest = 2 * model.output_stride
    for key, size in (("augmentation.size", config.augmentation.size), ("evaluate.stretch", config.evaluate.stretch)):
        if size is not None and min(size) < smallest:
            raise UserError(
                f"{key}={list(size)} is too small; with model.output_stride={model.output_stride} use at "
                f"least {smallest} pixels"
            )


def _check_numbers(c: MultitaskConfig) -> None:
    at_least: list[tuple[str, Any, float]] = [
        ("seed", c.seed, 0),
        *(("seeds", seed, 0) for seed in c.seeds or ()),
        ("batch_size", c.batch_size, 2),
        ("iterations", c.iterations, 0),
        ("max_steps", c.max_steps, 1),
        ("data.max_val", c.data.max_val, 1),
        ("data.workers", c.data.workers, 0),
        ("model.head_width", c.model.head_width, 1),
        ("model.rcm.init_count", c.model.rcm.init_count, 1),
        ("optim.momentum", c.optim.momentum, 0),
        ("optim.weight_decay", c.optim.weight_decay, 0),
        ("optim.power", c.optim.power, 0),
        ("evaluate.every_epochs", c.evaluate.every_epochs, 1),
        ("evaluate.pictures", c.evaluate.pictures, 0),
        ("checkpoint.every_steps", c.checkpoint.every_steps, 1),
        ("checkpoint.keep_last", c.checkpoint.keep_last, 1),
        ("checkpoint.keep_every_epochs", c.checkpoint.keep_every_epochs, 1),
        ("log.every", c.log.every, 1),
    ]
    check_at_least(at_least)
    above_zero = [
        ("epochs", c.epochs),
        ("optim.lr", c.optim.lr),
        ("checkpoint.every_minutes", c.checkpoint.every_minutes),
        ("model.rcm.rank", c.model.rcm.rank),
    ]
    check_above_zero(above_zero)


def _check_length(config: MultitaskConfig) -> None:
    if not only_evaluates(config) and (config.iterations is None) == (config.epochs is None):
        given = "neither iterations nor epochs is" if config.epochs is None else "both iterations and epochs are"
        raise UserError(f"{given} set; give the length of the schedule as one of them, and the other as null")
    if only_evaluates(config) and config.model.base is None:
        raise UserError("iterations=0 trains nothing; to evaluate a trained model set model.base=RUN")
    if only_evaluates(config) and config.seeds is not None:
        raise UserError("iterations=0 trains nothing, so that seeds have no effect; leave seeds out")


def _check_task_weights(weights: dict | None) -> None:
    for task, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"task_weights.{task}={weight} must be a number above 0")
