"""Keys of ``polyscene predict``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predictions of a trained multi-task model for photos of any size."""

    out: str | None = option(None, help="folder to write; null: predictions beside the model")
    tasks: tuple[str, ...] | None = option(None, help="tasks to predict; null: all of the model")
    longest: int | None = option(None, help="reduce photos with a longer side of more pixels for the network")
    count: int | None = option(None, help="at most so many photos, spread evenly; null: all")
    arrays: bool = option(False, help="also write the predictions as numbers, NAME.npz")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where to compute")
    precision: Literal["fp32", "bf16"] = option("fp32", help="of the network's arithmetic")
