"""State dicts with torchvision's and timm's names of ResNets and HRNets: supervised, SwAV, DeepCluster-v2 and DINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .containers import state_dict_of, without_module
from .records import Parsed, set_aside, under

_CLUSTERING_HEADS = ("projection_head.", "prototypes.")


def parse_dino(raw: Mapping[str, Any]) -> Parsed | None:
    """Translate a full DINO checkpoint; the teacher is taken, as DINO's own evaluation does; None if not one."""
    teacher = raw.get("teacher")
    if not isinstance(teacher, Mapping):
        return None
    state = without_module(teacher)
    backbone = under(state, "backbone.")
    _, left_aside = set_aside(
        {key: value for key, value in state.items() if not key.startswith("backbone.")}, ("head.",)
    )
    if isinstance(raw.get("student"), Mapping):
        left_aside["student"] = len(without_module(raw["student"]))
    metadata = {"epochs": str(raw["epoch"])} if isinstance(raw.get("epoch"), int) else {}
    return Parsed("DINO checkpoint (teacher)", backbone, left_aside, metadata)


def parse_torchvision(raw: Mapping[str, Any]) -> Parsed | None:
    """Translate a state dict with ResNet or HRNet names, at the top or under ``state_dict`` / ``model``, or None.

    Classifiers (``fc``, of HRNets ``classifier``) and the heads of SwAV and DeepCluster-v2 are left aside. A
    ``module.`` before every name is dropped.
    """
    state = state_dict_of(raw)
    if not ("conv1.weight" in state or "conv1.0.weight" in state) or not any(
        key.startswith("layer1.") for key in state
    ):
        return None
    backbone, left_aside = set_aside(state, ("fc.", "classifier.", *_CLUSTERING_HEADS))
    clustering = any(key.startswith(_CLUSTERING_HEADS) for key in state)
    metadata = {str(key): str(value) for key, value in raw.get("safetensors_metadata", {}).items() if key != "format"}
    if isinstance(raw.get("epoch"), int):
        metadata["epochs"] = str(raw["epoch"])
    arch = raw.get("arch") or metadata.pop("arch", None)
    name = "SwAV / DeepCluster-v2 state dict" if clustering else "torchvision/timm state dict"
    return Parsed(name, backbone, left_aside, metadata, arch if isinstance(arch, str) else None)
