"""Keys of ``polyscene cam``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option

from .evaluation_config import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class CamConfig(EvaluationConfig):
    """Class activation maps of one or two frozen backbones."""

    images: str | tuple[str, ...] = option(help="folder of images (CLASS/*.jpg: classes are known), or [FILE, ...]")
    count: int = option(16, help="images to draw, the same number of every class where possible")
    head: str | None = option(None, help="probe's run directory or linear_head.safetensors; null: first component")
    compare: str | None = option(None, help="a second backbone; null: the random baseline")
    compare_head: str | None = option(None, help="head of the second backbone; null: as for head")
    classes: tuple[str, ...] | None = option(None, help="classes to show; null: the predicted, and the true if known")
    output_stride: Literal[8, 16, 32] = option(16, help="image pixels per cell of the map; 16 and 8 dilate")
    resize: int = option(256, help="shorter side of the image, pixels")
    crop: int | None = option(224, help="side of the central crop, pixels, as the probe's; null: the whole image")
    colours: Literal["inferno", "viridis", "magma", "cividis"] = option("inferno", help="matplotlib's colour map")
    alpha: float = option(0.6, help="weight of the colours over the grey photo, 0 to 1")
    rows: int = option(8, help="images a page")
