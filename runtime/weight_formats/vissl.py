"""VISSL checkpoints: the trunk of ``classy_state_dict``, or a state dict with its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .containers import state_dict_of, without_module
from .records import Parsed, set_aside, under

_BLOCKS = "_feature_blocks."


def parse_vissl(raw: Mapping[str, Any]) -> Parsed | None:
    """Translate a VISSL checkpoint; None if it is something else.

    The trunk's modules keep torchvision's names under ``_feature_blocks.``; heads are separate in the file.
    """
    left_aside: dict[str, int] = {}
    classy = raw.get("classy_state_dict")
    if isinstance(classy, Mapping):
        model = _entry(_entry(classy, "base_model"), "model")
        state = without_module(_entry(model, "trunk"))
        heads = without_module(_entry(model, "heads"))
        if heads:
            left_aside["heads"] = len(heads)
    else:
        state = state_dict_of(raw)
    # Frozen trunks are wrapped once more, in a module called base_model.
    prefix = next(
        (prefix for prefix in (_BLOCKS, f"base_model.{_BLOCKS}") if any(key.startswith(prefix) for key in state)), None
    )
    if prefix is None:
        return None
    backbone, classifier = set_aside(under(state, prefix), ("fc.",))
    others = {key: value for key, value in state.items() if not key.startswith(prefix)}
    return Parsed("VISSL checkpoint", {**backbone, **others}, {**left_aside, **classifier})


def _entry(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = mapping.get(name)
    return value if isinstance(value, Mapping) else {}
