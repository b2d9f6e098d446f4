"""Keys of ``polyscene propagate`` and the checks between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option, section
from polyscene.runtime.errors import UserError

from .evaluation_config import EvaluationConfig
from .limits import check_above_zero, check_at_least


@dataclass(frozen=True, kw_only=True)
class PropagateDataConfig:
    """Which videos."""

    kind: Literal["davis2017", "frames"] = option(help="DAVIS-2017 layout, or one folder of frames")
    root: str | None = option(None, help="DAVIS folder with JPEGImages/480p, Annotations/480p, ImageSets/2017")
    split: str = option("val", help="list of sequences in ImageSets/2017 (davis2017)")
    sequences: tuple[str, ...] | None = option(None, help="only these sequences (davis2017); null: all of the split")
    frames: str | None = option(None, help="folder of frames (frames)")
    masks: str | None = option(None, help="mask of the first frame, or folder of masks named like the frames (frames)")


@dataclass(frozen=True, kw_only=True)
class PropagateConfig(EvaluationConfig):
    """Label propagation through videos with frozen features."""

    layer: Literal["layer2", "layer3", "layer4"] = option("layer3", help="stage whose features are compared, stride 8")
    context: int = option(20, help="previous frames whose labels vote, beside the first frame")
    pad_context: bool = option(True, help="until enough frames are past, fill the context with copies of the first")
    radius: float = option(
        12.0, help="cells of a previous frame at this distance or more do not vote (8 pixels a cell)"
    )
    top_k: int = option(10, help="most similar cells that vote")
    temperature: float = option(0.05, help="of the votes' weights")
    batch_size: int = option(4, help="frames per forward pass")
    data: PropagateDataConfig = section(PropagateDataConfig, help="videos")


def check_values(config: PropagateConfig) -> None:
    """Refuse values that no data could make right.

    Raises:
        UserError: naming the key.
    """
    check_at_least(
        [
            ("context", config.context, 0),
            ("radius", config.radius, 1),
            ("top_k", config.top_k, 1),
            ("batch_size", config.batch_size, 1),
            ("workers", config.workers, 0),
        ]
    )
    check_above_zero([("temperature", config.temperature)])
    data = config.data
    needed = {"davis2017": ("root",), "frames": ("frames", "masks")}
    for kind, keys in needed.items():
        for key in keys:
            if kind == data.kind and getattr(data, key) is None:
                raise UserError(f"data.kind={kind} needs data.{key}; add data.{key}=PATH")
            if kind != data.kind and getattr(data, key) is not None:
                raise UserError(f"data.{key} is a key of data.kind={kind}, not of {data.kind}; leave one of them out")
    if data.sequences is not None and (data.kind != "davis2017" or not data.sequences):
        raise UserError("data.sequences names sequences of data.kind=davis2017; use data.sequences=null for all")
    if data.sequences is not None and len(set(data.sequences)) != len(data.sequences):
        raise UserError("data.sequences names a sequence twice; name each once")
