"""Keys of ``polyscene probe``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option, section
from polyscene.runtime.errors import UserError

from .evaluation_config import EvaluationConfig
from .limits import check_above_zero, check_at_least

DataKind = Literal[
    "folder",
    "voc2007",
    "cifar10",
    "food101",
    "oxford_iiit_pet",
    "stanford_cars",
    "sun397",
    "places365",
    "imagenet",
]


@dataclass(frozen=True, kw_only=True)
class ProbeDataConfig:
    """Labelled images."""

    kind: DataKind = option("folder", help="layout of the data set")
    root: str | None = option(None, help="folder of the data set; not for kind folder")
    train: str | None = option(None, help="kind folder: CLASS/*.jpg, or images and labels.csv, to learn from")
    test: str | None = option(None, help="kind folder: the same for the images that are classified")
    download: bool = option(False, help="fetch a missing data set through torchvision, where that can")


@dataclass(frozen=True, kw_only=True)
class SvmConfig:
    """Protocol voc_svm."""

    variant: Literal["paper", "vissl"] = option("paper", help="C as in the thesis, or cross-validated as in VISSL")
    cost: float = option(0.5, help="paper: C of every class")
    costs: tuple[float, ...] | None = option(None, help="vissl: values of C to choose from; null: its 11 of VOC 2007")
    folds: int = option(3, help="vissl: parts of the cross-validation")


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Protocol linear."""

    solver: Literal["lbfgs", "sgd"] = option("lbfgs", help="on cached features, or on augmented crops (MoCo)")
    holdout: float = option(0.2, help="share of the training images that chooses strength or learning rate")
    strengths: tuple[float, ...] | None = option(None, help="lbfgs: L2 strengths; null: 45 from 1e-6 to 1e5")
    learning_rates: tuple[float, ...] | None = option(None, help="sgd: all trained at once; null: 13 around 30")
    epochs: int = option(100, help="sgd: passes over the training images")
    milestones: tuple[int, ...] = option((60, 80), help="sgd: epochs at which the learning rate is divided by 10")
    batch_size: int = option(256, help="sgd: images per step")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(EvaluationConfig):
    """Classification with frozen features."""

    protocol: Literal["knn", "linear", "voc_svm"] = option("knn", help="how features are classified")
    k: int = option(20, help="knn: neighbours that vote")
    temperature: float = option(0.07, help="knn: of the votes' weights")
    resize: int = option(256, help="shorter side, pixels")
    crop: int = option(224, help="side of the central crop, pixels")
    cache: str | None = option("runs/features", help="folder that keeps features; null: none is kept")
    svm: SvmConfig = section(SvmConfig, help="protocol voc_svm")
    linear: LinearConfig = section(LinearConfig, help="protocol linear")
    data: ProbeDataConfig = section(ProbeDataConfig, help="images")


def check_values(config: ProbeConfig) -> None:
    """Refuse values that no probe can work with.

    Raises:
        UserError: naming the key.
    """
    whole = {
        "k": config.k,
        "resize": config.resize,
        "crop": config.crop,
        "linear.epochs": config.linear.epochs,
        "linear.batch_size": config.linear.batch_size,
    }
    check_at_least((key, value, 1) for key, value in whole.items())
    if config.workers < 0:
        raise UserError(f"workers={config.workers} must be 0 or more")
    check_at_least([("svm.folds", config.svm.folds, 2)])
    if not 0 <= config.linear.holdout < 1:
        raise UserError(f"linear.holdout={config.linear.holdout} must be at least 0 and less than 1")
    positive = {
        "temperature": (config.temperature,),
        "svm.cost": (config.svm.cost,),
        "svm.costs": config.svm.costs,
        "linear.strengths": config.linear.strengths,
        "linear.learning_rates": config.linear.learning_rates,
    }
    for key, values in positive.items():
        if values == ():
            raise UserError(f"{key}=[] leaves nothing to try; null takes the usual values")
        check_above_zero((key, value) for value in values or ())
