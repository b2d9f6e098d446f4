"""Keys that all evaluations of a frozen backbone share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option

# Keys that may differ when an evaluation is continued: they do not change what it finds.
HARMLESS = ("workers", "device", "cache")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and where."""

    weights: str = option(help="run directory, weights file of any known format, or random")
    out: str = option(help="folder for results.json and pictures")
    overwrite: bool = option(False, help="start afresh where out holds another evaluation")
    baseline: Literal["random"] | None = option("random", help="also measure random weights; null: do not")
    arch: str | None = option(None, help="backbone; null: as the weights say")
    seed: int = option(0, help="of random weights and of everything drawn")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    precision: Literal["fp32", "bf16"] = option("fp32", help="of the backbone's arithmetic")
    workers: int = option(2, help="processes that decode")
