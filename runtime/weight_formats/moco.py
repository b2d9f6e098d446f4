"""MoCo checkpoints (MoCo v1/v2, and the constrained multi-crop models built on its code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .containers import state_dict_of
from .records import BackboneWeights, Parsed, TrainingState, set_aside, under

_OTHERS = ("encoder_k.", "queue_backbone", "queue_ptr", "queue")


def parse_moco(raw: Mapping[str, Any], with_training: bool) -> Parsed | None:
    """Translate a MoCo checkpoint (its query encoder is the backbone); None if it is something else.

    Queues lie in the file as (D, K) and (C, K), one column per key; `TrainingState` has one row per key.
    """
    state = state_dict_of(raw)
    query = under(state, "encoder_q.")
    if not query:
        return None
    rest, left_aside = set_aside(
        {key: value for key, value in state.items() if not key.startswith("encoder_q.")}, _OTHERS
    )
    backbone, head = set_aside(query, ("fc.",))
    left_aside = {**({"encoder_q.fc": head["fc"]} if head else {}), **left_aside}
    training = _training(state) if with_training else None
    metadata = {"epochs": str(raw["epoch"])} if isinstance(raw.get("epoch"), int) else {}
    arch = raw.get("arch") if isinstance(raw.get("arch"), str) else None
    return Parsed("MoCo checkpoint", {**backbone, **rest}, left_aside, metadata, arch, training)


def _training(state: Mapping[str, Tensor]) -> TrainingState | None:
    key = under(state, "encoder_k.")
    if not key or "queue" not in state:
        return None
    features = state.get("queue_backbone")
    return TrainingState(
        query_head=under(state, "encoder_q.fc."),
        key_backbone={name: value for name, value in key.items() if not name.startswith("fc.")},
        key_head=under(key, "fc."),
        embeddings=state["queue"].T.contiguous(),
        features=None if features is None else features.T.contiguous(),
        pointer=int(state["queue_ptr"]) if "queue_ptr" in state else 0,
    )


def to_moco(weights: BackboneWeights, training: TrainingState) -> dict[str, Any]:
    """The content of a MoCo checkpoint, as ``main_moco.py`` writes it, without the optimiser's state."""
    state: dict[str, Tensor] = {}
    for encoder, backbone, head in (
        ("encoder_q", weights.state, training.query_head),
        ("encoder_k", training.key_backbone, training.key_head),
    ):
        state |= {f"module.{encoder}.{key}": value for key, value in backbone.items()}
        state |= {f"module.{encoder}.fc.{key}": value for key, value in head.items()}
    state["module.queue"] = training.embeddings.T.contiguous()
    state["module.queue_ptr"] = torch.tensor([training.pointer], dtype=torch.int64)
    if training.features is not None:
        state["module.queue_backbone"] = training.features.T.contiguous()
    epoch = int(float(weights.metadata.get("epochs", "0")))
    return {"epoch": epoch, "arch": weights.arch, "state_dict": {key: value.clone() for key, value in state.items()}}
