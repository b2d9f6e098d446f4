"""Keys of ``polyscene analyse``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option
from polyscene.runtime.errors import UserError

from .limits import check_at_least

Layer = Literal["layer1", "layer2", "layer3", "layer4"]

# Keys that may differ when an analysis is run again: they do not change what it finds.
HARMLESS = ("device", "workers", "chunk")


@dataclass(frozen=True, kw_only=True)
class AnalyseConfig:
    """What is analysed, and where the results go."""

    runs: tuple[str, ...] = option(help="the runs that were named")
    out: str | None = option(None, help="folder for results.json and pictures; null: analysis/WHAT in the first run")
    overwrite: bool = option(False, help="start afresh where out holds another analysis")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    seed: int = option(0, help="of everything drawn")


@dataclass(frozen=True, kw_only=True)
class GradientsConfig(AnalyseConfig):
    """Similarity of the tasks' gradients (RCM, figure 3)."""

    data: str | None = option(None, help="config or run whose images are used; null: the run's own config")
    tasks: tuple[str, ...] | None = option(None, help="tasks to compare; null: all of the model")
    batches: int = option(40, help="minibatches")
    batch_size: int = option(16, help="images per minibatch (paper: 128)")
    chunk: int | None = option(None, help="images per backward pass, where a minibatch needs too much memory")
    values: int | None = option(262_144, help="entries of the gradient compared at every depth; null: all")
    precision: Literal["fp32", "bf16"] = option("fp32", help="of the network's arithmetic")
    workers: int = option(2, help="processes that read images")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(AnalyseConfig):
    """Features as colours, side by side in several models (RCM, figure 5)."""

    images: str | None = option(None, help="image, folder or list of images; null: of the first run's val list")
    data: str | None = option(None, help="config or run whose val list is used; null: the first run's own config")
    count: int = option(2, help="images to show, spread evenly")
    longest: int | None = option(512, help="reduce images with a longer side of more pixels; null: do not")
    tasks: tuple[str, ...] | None = option(None, help="tasks to show; null: all of the models")
    layers: tuple[Layer, ...] = option(("layer1", "layer2", "layer3", "layer4"), help="stages of the encoder")


@dataclass(frozen=True, kw_only=True)
class ParametersConfig(AnalyseConfig):
    """Parameters against the number of tasks, for every kind of model (RCM, figure 4)."""

    tasks: int = option(5, help="largest number of tasks")
    arch: str | None = option(None, help="another backbone than the run's or config's")


@dataclass(frozen=True, kw_only=True)
class AffinityConfig(AnalyseConfig):
    """Pixel affinities that tasks share, against the dilation of the kernel (thesis, figure 5.3)."""

    tasks: tuple[str, ...] | None = option(None, help="tasks to compare; null: all of the config that can be")
    dilations: tuple[int, ...] = option((1, 2, 4, 8, 16, 32, 64), help="pixels between neighbours in the kernel")
    kernel: int = option(3, help="side of the kernel, odd")
    thresholds: dict | None = option(
        None, help="task -> pairs of pixels that differ by less are similar; null: of the task (depth: 0.1, relative)"
    )
    split: Literal["train", "val"] = option("train", help="list of images")
    max_images: int | None = option(None, help="use so many images, spread evenly over the list; null: all")
    workers: int = option(2, help="processes that read and count")
    overrides: tuple[str, ...] = option((), help="keys with a dot are the config's: data.root=DIR")


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig(AnalyseConfig):
    """Parameters, operations, memory and time of networks beside each other (thesis, table 5.6)."""

    reference: str | None = option(None, help="config that the others are compared with; null: the first one")
    tasks: tuple[str, ...] | None = option(None, help="tasks of all networks; null: of each config")
    arch: str | None = option(None, help="backbone of all networks; null: of each config")
    size: tuple[int, int] = option((480, 640), help="height and width of the images, pixels")
    batch: int = option(1, help="images of a pass (memory and latency)")
    precision: Literal["fp32", "bf16"] = option("fp32", help="of the networks' arithmetic")
    repeats: int = option(10, help="timed passes of every network, which take turns; 0: count, and run nothing")
    overrides: tuple[str, ...] = option((), help="keys with a dot are the configs': model.head_width=64")


SCHEMAS: dict[str, type[AnalyseConfig]] = {
    "gradients": GradientsConfig,
    "features": FeaturesConfig,
    "parameters": ParametersConfig,
    "affinity": AffinityConfig,
    "resources": ResourcesConfig,
}


def check_values(config: AnalyseConfig) -> None:
    """Refuse values that nothing could make right.

    Raises:
        UserError: naming the key.
    """
    least = {
        "seed": 0,
        "batches": 3,
        "batch_size": 1,
        "chunk": 1,
        "values": 2,
        "workers": 0,
        "count": 1,
        "longest": 64,
        "max_images": 1,
        "batch": 1,
        "repeats": 0,
    }
    if isinstance(config, ParametersConfig):
        least["tasks"] = 1
    check_at_least((key, getattr(config, key, None), bound) for key, bound in least.items())
    if isinstance(config, ResourcesConfig) and min(config.size) < 64:
        raise UserError(f"size={list(config.size)} is too small; give a height and a width of at least 64 pixels")
    if isinstance(config, FeaturesConfig) and (not config.layers or len(set(config.layers)) < len(config.layers)):
        raise UserError(f"layers={list(config.layers)} must name one or more stages, each once")
