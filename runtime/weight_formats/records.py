"""What the readers of weight files hand on, and what the writers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """The rest of a momentum-contrast model, needed to write a complete MoCo checkpoint.

    Args:
        query_head: the query encoder's projection head, keys without prefix (``0.weight``, ``2.bias``, ...).
        key_backbone: the momentum encoder's backbone, torchvision keys.
        key_head: the momentum encoder's head.
        embeddings: (K, D) queue of embeddings.
        features: (K, C) queue of backbone features, or None (plain MoCo has none).
        pointer: the next slot to be written.
    """

    query_head: dict[str, Tensor]
    key_backbone: dict[str, Tensor]
    key_head: dict[str, Tensor]
    embeddings: Tensor
    features: Tensor | None
    pointer: int


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone's weights in the one form that the package works with.

    Args:
        arch: timm name; ``timm.create_model(arch, num_classes=0)`` has exactly the keys of `state` (of an HRNet, the
            parts that only its classifier uses may be missing).
        state: key -> tensor, torchvision/timm names, float32 on the CPU, no classifier or projection head.
        metadata: facts about the training, as strings (``epochs``, ``step``, ``dataset``, ``config_hash``).
        source_format: which format it was read from, in words.
        path: where it was read from.
        counters_set: how many ``num_batches_tracked`` the file lacked (they are 0 in `state`).
        left_aside: what else the file held -> number of tensors (heads, momentum encoder, queues).
        training: the rest of the model, where asked for and present.
    """

    arch: str
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    source_format: str = "memory"
    path: Path | None = None
    counters_set: int = 0
    left_aside: dict[str, int] = field(default_factory=dict)
    training: TrainingState | None = None


@dataclass(frozen=True)
class Parsed:
    """A weight file after its names have been translated and before its architecture is known.

    Args:
        source_format: the format in words, for messages.
        backbone: torchvision keys -> tensors as they were in the file.
        left_aside: other groups of tensors -> how many.
        metadata: see `BackboneWeights`.
        arch: the architecture named in the file, or None.
        training: see `BackboneWeights`.
    """

    source_format: str
    backbone: dict[str, Tensor]
    left_aside: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    arch: str | None = None
    training: TrainingState | None = None


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def set_aside(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Split a state dict into what matters and a count of what starts with one of `prefixes`."""
    kept: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is None:
            kept[key] = value
        else:
            counts[prefix.rstrip("._")] = counts.get(prefix.rstrip("._"), 0) + 1
    return kept, counts
