"""Keys of ``polyscene pretrain``, their defaults (the thesis' COCO recipe) and the checks between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polyscene.runtime.config import option, section, to_dict
from polyscene.runtime.errors import UserError

from .limits import check_above_zero, check_at_least

# Keys that may differ when a run is continued: they do not change the weights it computes.
HARMLESS = (
    "data.workers",
    "data.max_unreadable",
    "data.cache",
    "data.cache_dir",
    "checkpoint",
    "log",
    "online_knn",
    "max_steps",
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images."""

    kind: Literal["folder", "coco", "openimages", "bdd100k", "imagenet"] = option(help="layout of the data set")
    root: str = option(help="folder of the data set")
    list: str | None = option(None, help="text file that names the images to use, one a line")
    subset: int | None = option(None, help="use a random subset of this many images")
    long_tailed: bool = option(False, help="draw the subset with Pareto class sizes, power 6 (imagenet)")
    splits: tuple[str, ...] = option(("train",), help="parts of the data set (bdd100k: train, val, test)")
    workers: int = option(8, help="processes that read and decode images, per training process")
    max_unreadable: float = option(0.01, help="share of unreadable images that ends the run")
    cache: Literal["none", "memory", "disk", "device"] = option("none", help="where decoded images are kept")
    cache_side: int = option(384, help="shorter side to which larger images are reduced in the cache, pixels")
    cache_dir: str | None = option(
        None, help="folder of the cache, for all runs; null: beside out (disk), or not kept (memory, device)"
    )
    decode: Literal["host", "device"] = option("host", help="where JPEG files are decoded (device: a GPU; no cache)")


@dataclass(frozen=True, kw_only=True)
class LargeCropConfig:
    """Large crops: query, anchor and further queries."""

    count: int = option(2, help="large crops per image; crop 1 is the anchor")
    size: int = option(160, help="pixels per side")
    scale: tuple[float, float] = option((0.2, 1.0), help="crop area as a share of the image, from - to")


@dataclass(frozen=True, kw_only=True)
class SmallCropConfig:
    """Small crops: further queries."""

    count: int = option(4, help="small crops per image; 0: two-crop training")
    size: int = option(96, help="pixels per side")
    scale: tuple[float, float] = option((0.05, 0.14), help="crop area as a share of the image, from - to")


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """What the network sees of an image."""

    large: LargeCropConfig = section(LargeCropConfig, help="large crops")
    small: SmallCropConfig = section(SmallCropConfig, help="small crops")
    constraint: Literal["overlap", "inside", "none"] = option("overlap", help="small crops versus the anchor's box")
    min_overlap: float = option(0.1, help="share of a small crop that overlaps the anchor (constraint: overlap)")
    max_iou: float | None = option(None, help="upper limit on the IoU of the two large crops")
    augmentation: Literal["standard", "autoaugment", "mix"] = option("mix", help="of the queries; anchor: standard")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Batch-norm groups."""

    kind: Literal["auto", "shuffle", "split", "sync"] = option("auto", help="BatchNorm groups; auto: split/shuffle")
    group: int = option(128, help="images per BatchNorm group (auto: at most)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and queue."""

    backbone: str = option("resnet50", help="a timm model of the ResNet family")
    dim: int = option(128, help="embedding width")
    queue: int = option(65536, help="keys remembered")
    momentum: float = option(0.995, help="of the key encoder's moving average")
    temperature: float = option(0.2, help="of both softmaxes")
    norm: NormConfig = section(NormConfig, help="batch normalisation")


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """The nearest-neighbour loss."""

    k: int = option(20, help="nearest neighbours per query; 0: no neighbour loss")
    weight: float = option(0.4, help="of the neighbour loss (lambda)")
    start_epoch: float = option(0.0, help="epoch at which the neighbour loss sets in")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD."""

    lr: float = option(0.3, help="peak learning rate, for the stated global batch size")
    momentum: float = option(0.9, help="of SGD")
    weight_decay: float = option(1e-4, help="on all parameters")
    warmup_epochs: float = option(0.0, help="epochs of linear warm-up")
    accumulate: int = option(1, help="forward/backward passes that make up one global batch")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the training state is saved and kept."""

    every_steps: int | None = option(None, help="save every so many steps")
    every_minutes: float | None = option(15.0, help="save every so many minutes")
    keep_last: int = option(2, help="newest checkpoints kept")
    keep_every_epochs: int | None = option(100, help="also keep the checkpoint of every n-th epoch for ever")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is recorded."""

    every: int = option(50, help="steps between two lines of metrics.jsonl")
    tensorboard: bool = option(True, help="write TensorBoard scalars")
    pictures: bool = option(True, help="write pictures/views.png before training")


@dataclass(frozen=True, kw_only=True)
class OnlineKnnConfig:
    """kNN accuracy during training."""

    every_epochs: int | None = option(10, help="epochs between two kNN evaluations; needs labels; null: never")
    held_out: str | None = option(None, help="folder CLASS/*.jpg of held-out images; null: leave one out")
    images: int = option(5000, help="largest number of training images in the bank")
    k: int = option(20, help="neighbours that vote")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Self-supervised pretraining of a ResNet: kNN-MoCo with constrained multi-crop and A+."""

    out: str = option(help="run directory; the same command continues it")
    overwrite: bool = option(False, help="remove an earlier run in out first")
    seed: int = option(0, help="of weights, order and views")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    precision: Literal["bf16", "fp32"] = option("bf16", help="of the encoders; losses and queues are always fp32")
    compile: bool = option(False, help="torch.compile the encoders")
    epochs: int = option(800, help="length of the schedule")
    max_steps: int | None = option(None, help="stop after so many steps of the schedule (smoke runs)")
    batch_size: int = option(256, help="images per step, over all processes")
    data: DataConfig = section(DataConfig, help="images")
    views: ViewsConfig = section(ViewsConfig, help="crops and augmentation")
    model: ModelConfig = section(ModelConfig, help="encoder and queue")
    neighbours: NeighboursConfig = section(NeighboursConfig, help="nearest-neighbour loss")
    optim: OptimConfig = section(OptimConfig, help="optimiser")
    checkpoint: CheckpointConfig = section(CheckpointConfig, help="saving")
    log: LogConfig = section(LogConfig, help="what is recorded")
    online_knn: OnlineKnnConfig = section(OnlineKnnConfig, help="kNN accuracy during training")


def run_values(config: PretrainConfig) -> dict[str, Any]:
    """The config as its run directory keeps it: without keys that have no say.

    So a run can be continued with another cache exactly where the pixels stay the same: between caches of one side, but
    not between a cache and none.
    """
    values = to_dict(config)
    if config.data.cache == "none":
        del values["data"]["cache_side"]
    if config.data.decode == "host":
        del values["data"]["decode"]
    return values


def check_values(config: PretrainConfig) -> None:
    """Refuse values that are of the right type but make no sense.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    _check_numbers(config)
    _check_crops(config.views)
    micro = config.optim.accumulate
    if config.batch_size % micro:
        raise UserError(f"optim.accumulate={micro} does not divide batch_size={config.batch_size}; choose a divisor")
    if config.neighbours.k > config.model.queue:
        raise UserError(
            f"neighbours.k={config.neighbours.k} is larger than model.queue={config.model.queue}; lower k or enlarge it"
        )
    if config.data.long_tailed and config.data.kind != "imagenet":
        raise UserError(f"data.long_tailed needs class folders (data.kind=imagenet), not data.kind={config.data.kind}")
    if config.data.long_tailed and config.data.subset is None:
        raise UserError("data.long_tailed needs data.subset=N, the number of images to draw")
    if config.data.decode == "device" and config.data.cache != "none":
        raise UserError(
            f"data.decode=device decodes images whenever they are shown, data.cache={config.data.cache} once; use "
            "data.decode=host"
        )
    if not (config.checkpoint.every_steps or config.checkpoint.every_minutes):
        raise UserError("checkpoint.every_steps and checkpoint.every_minutes are both null; set one of them")


def _check_numbers(c: PretrainConfig) -> None:
    at_least = [
        ("epochs", c.epochs, 1),
        ("max_steps", c.max_steps, 1),
        ("batch_size", c.batch_size, 2),
        ("seed", c.seed, 0),
        ("data.subset", c.data.subset, 1),
        ("data.workers", c.data.workers, 0),
        ("data.cache_side", c.data.cache_side, 8),
        ("model.dim", c.model.dim, 1),
        ("model.queue", c.model.queue, 1),
        ("model.norm.group", c.model.norm.group, 1),
        ("neighbours.k", c.neighbours.k, 0),
        ("neighbours.weight", c.neighbours.weight, 0),
        ("neighbours.start_epoch", c.neighbours.start_epoch, 0),
        ("optim.momentum", c.optim.momentum, 0),
        ("optim.weight_decay", c.optim.weight_decay, 0),
        ("optim.warmup_epochs", c.optim.warmup_epochs, 0),
        ("optim.accumulate", c.optim.accumulate, 1),
        ("checkpoint.every_steps", c.checkpoint.every_steps, 1),
        ("checkpoint.keep_last", c.checkpoint.keep_last, 1),
        ("checkpoint.keep_every_epochs", c.checkpoint.keep_every_epochs, 1),
        ("log.every", c.log.every, 1),
        ("online_knn.every_epochs", c.online_knn.every_epochs, 1),
        ("online_knn.images", c.online_knn.images, 2),
        ("online_knn.k", c.online_knn.k, 1),
    ]
    check_at_least(at_least)
    above_zero = [("optim.lr", c.optim.lr), ("model.temperature", c.model.temperature)]
    above_zero.append(("checkpoint.every_minutes", c.checkpoint.every_minutes))
    check_above_zero(above_zero)
    if not 0 <= c.model.momentum < 1:
        raise UserError(f"model.momentum={c.model.momentum} must be at least 0 and below 1")
    if not 0 <= c.data.max_unreadable <= 1:
        raise UserError(f"data.max_unreadable={c.data.max_unreadable} is a share between 0 and 1")
    if c.optim.warmup_epochs >= c.epochs and c.optim.warmup_epochs > 0:
        raise UserError(f"optim.warmup_epochs={c.optim.warmup_epochs} leaves nothing of epochs={c.epochs}; lower it")


def _check_crops(views: ViewsConfig) -> None:
    if views.large.count < 2:
        raise UserError(f"views.large.count={views.large.count}: at least 2 are needed, a query and an anchor")
    if views.small.count < 0:
        raise UserError(f"views.small.count={views.small.count} must be 0 or more")
    for name, group in (("large", views.large), ("small", views.small)):
        if group.count and group.size < 8:
            raise UserError(f"views.{name}.size={group.size} pixels is too small; use at least 8 (32 for ResNets)")
        low, high = group.scale
        if not 0 < low <= high <= 1:
            raise UserError(f"views.{name}.scale={[low, high]} must satisfy 0 < from <= to <= 1")
    if not 0 <= views.min_overlap <= 1:
        raise UserError(f"views.min_overlap={views.min_overlap} is a share between 0 and 1")
    if views.max_iou is not None and not 0 < views.max_iou <= 1:
        raise UserError(f"views.max_iou={views.max_iou} must be in (0, 1], or null")
