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


SCHEMAS: dict[str, type[AnalyseConfig]] = {
    "gradients": GradientsConfig,
    "features": FeaturesConfig,
    "parameters": ParametersConfig,
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
    }
    if isinstance(config, ParametersConfig):
        least["tasks"] = 1
    check_at_least((key, getattr(config, key, None), bound) for key, bound in least.items())
    if isinstance(config, FeaturesConfig) and (not config.layers or len(set(config.layers)) < len(config.layers)):
        raise UserError(f"layers={list(config.layers)} must name one or more stages, each once")
