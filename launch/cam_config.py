"""Keys of ``polyscene cam`` and the checks between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option
from polyscene.runtime.errors import UserError

from .evaluation_config import EvaluationConfig
from .limits import check_at_least


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


def check_values(config: CamConfig) -> None:
    """Refuse values that no images could make right.

    Raises:
        UserError: naming the key.
    """
    check_at_least([("count", config.count, 1), ("rows", config.rows, 1)])
    for key, value in (("resize", config.resize), ("crop", config.crop)):
        if value is not None and value < 32:
            raise UserError(f"{key}={value} is too small for a backbone; it must be at least 32")
    if not 0 <= config.alpha <= 1:
        raise UserError(f"alpha={config.alpha} must lie between 0 and 1")
    if config.classes == ():
        raise UserError("classes=[] shows nothing; name some, or leave the key out")
    if config.classes and not (config.head or config.compare_head):
        raise UserError("classes needs the linear head of a probe; give head=RUN of polyscene probe protocol=linear")
    if config.compare_head and not config.compare and (config.baseline is None or config.weights == "random"):
        raise UserError("compare_head needs a second backbone; give compare=WEIGHTS or baseline=random")
