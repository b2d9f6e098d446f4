"""PolyScene's own files: the training checkpoint and the exported backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from .containers import without_module
from .records import Parsed, TrainingState, set_aside, under

CHECKPOINT_FORMAT = "polyscene-pretrain-1"
_KEYS = {"epoch": "epochs", "step": "step", "dataset": "dataset", "config_hash": "config_hash"}


def find_in_run(run: Path, checkpoint: bool) -> Path:
    """The weight file of a run directory: the finished backbone, or else the newest checkpoint.

    Args:
        run: the directory.
        checkpoint: take the checkpoint even where a finished backbone exists.

    Raises:
        UserError: the directory holds neither.
    """
    finished = run / "backbone.safetensors"
    if finished.is_file() and not checkpoint:
        return finished
    folder = run / "checkpoints"
    if (folder / "last").is_file():
        name = (folder / "last").read_text(encoding="utf-8", errors="replace").strip()
        if name and Path(name).name == name and (folder / name).is_file():
            return folder / name
    # `last` is gone or points nowhere (a partial copy of the run): the highest step will do.
    saved = sorted(folder.glob("step-*.pt"), key=lambda file: (len(file.name), file.name))
    if saved:
        return saved[-1]
    if checkpoint and finished.is_file():
        raise UserError(
            f"{run}: has no checkpoint left in checkpoints/, and backbone.safetensors holds the backbone only"
        )
    raise UserError(
        f"{run}: holds neither backbone.safetensors nor checkpoints/; give a pretraining run or a weight file"
    )


def parse_checkpoint(raw: Mapping[str, Any], path: Path, with_training: bool) -> Parsed | None:
    """Translate a training checkpoint of ours; None if it is something else.

    Raises:
        UserError: written by a version of the package with another layout.
    """
    layout = raw.get("format")
    if not isinstance(layout, str) or not layout.startswith("polyscene-pretrain-"):
        return None
    if layout != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: its layout {layout!r} is not {CHECKPOINT_FORMAT!r}; read it with the version that wrote it"
        )
    model = without_module(raw["model"] if isinstance(raw.get("model"), Mapping) else {})
    backbone = under(model, "query.backbone.")
    _, left_aside = set_aside(model, ("query.head.", "key.backbone.", "key.head.", "queue."))
    training = _training(model) if with_training else None
    metadata = {
        name: f"{raw[key]:g}" if isinstance(raw[key], float) else str(raw[key])
        for key, name in _KEYS.items()
        if key in raw
    }
    return Parsed("PolyScene training checkpoint", backbone, left_aside, metadata, raw.get("arch"), training)


def _training(model: Mapping[str, Tensor]) -> TrainingState | None:
    if "queue.embeddings" not in model or "queue.pointer" not in model:
        return None
    return TrainingState(
        query_head=under(model, "query.head."),
        key_backbone=under(model, "key.backbone."),
        key_head=under(model, "key.head."),
        embeddings=model["queue.embeddings"].clone(),  # not tied to the mapped file
        features=model["queue.features"].clone() if "queue.features" in model else None,
        pointer=int(model["queue.pointer"]),
    )
