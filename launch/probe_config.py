"""Keys of ``polyscene probe``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option, section


@dataclass(frozen=True, kw_only=True)
class ProbeDataConfig:
    """Labelled images."""

    train: str = option(help="folder CLASS/*.jpg of the images that vote")
    test: str = option(help="folder CLASS/*.jpg of the images that are classified")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Classification with frozen features."""

    weights: str = option(help="run directory, weights file of any known format, or random")
    out: str = option(help="folder for results.json")
    protocol: Literal["knn"] = option("knn", help="how features are classified")
    baseline: Literal["random"] | None = option("random", help="also measure random weights; null: do not")
    arch: str | None = option(None, help="backbone; null: as the weights say")
    k: int = option(20, help="neighbours that vote")
    temperature: float = option(0.07, help="of the votes' weights")
    resize: int = option(256, help="shorter side, pixels")
    crop: int = option(224, help="side of the central crop, pixels")
    seed: int = option(0, help="of random weights")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    workers: int = option(2, help="processes that decode")
    data: ProbeDataConfig = section(ProbeDataConfig, help="images")
