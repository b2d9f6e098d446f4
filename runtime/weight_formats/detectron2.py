"""detectron2 backbones: its names for ResNets, and the pickle that its checkpointer reads."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .containers import state_dict_of
from .records import Parsed, set_aside, under

_HEADS = (
    *("fc.", "stem.fc.", "linear.", "proposal_generator.", "roi_heads.", "sem_seg_head.", "pixel_mean", "pixel_std"),
    *("backbone.fpn_", "backbone.top_block."),
)
_FROM_PARTS = (("shortcut.norm.", "downsample.1."), ("shortcut.", "downsample.0."))
_TO_PARTS = (("downsample.1.", "shortcut.norm."), ("downsample.0.", "shortcut."))


def parse_detectron2(raw: Mapping[str, Any]) -> Parsed | None:
    """Translate a detectron2 backbone or a whole detector with one; None if it is something else."""
    state, left_aside = set_aside(state_dict_of(raw), _HEADS)
    for prefix in ("", "backbone.bottom_up.", "backbone."):
        if f"{prefix}stem.conv1.weight" in state:
            backbone = under(state, prefix)
            others = {key: value for key, value in state.items() if not key.startswith(prefix)}
            translated = {to_torchvision_name(key): value for key, value in backbone.items()}
            return Parsed("detectron2 file", {**translated, **others}, left_aside)
    return None


def to_torchvision_name(name: str) -> str:
    """detectron2 name of a ResNet tensor -> torchvision's (unknown names stay as they are).

    >>> to_torchvision_name("res2.0.conv1.norm.weight")
    'layer1.0.bn1.weight'
    """
    stem = re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name)
    if stem:
        return f"{'bn1' if stem[1] else 'conv1'}.{stem[2]}"
    block = re.fullmatch(r"res([2-5])\.(\d+)\.(.+)", name)
    if not block:
        return name
    inner = re.sub(r"^conv([1-3])\.norm\.", r"bn\1.", block[3])
    for theirs, ours in _FROM_PARTS:
        if inner.startswith(theirs):
            inner = ours + inner.removeprefix(theirs)
            break
    return f"layer{int(block[1]) - 1}.{block[2]}.{inner}"


def to_detectron2_name(name: str) -> str | None:
    """torchvision name of a ResNet tensor -> detectron2's; None for the counters, which detectron2 does not have.

    Raises:
        KeyError: detectron2's ResNet has no such tensor (deep stems, attention, other norms).
    """
    if name.endswith(".num_batches_tracked"):
        return None
    stem = re.fullmatch(r"(conv1|bn1)\.(\w+)", name)
    if stem:
        return f"stem.conv1.{'norm.' if stem[1] == 'bn1' else ''}{stem[2]}"
    block = re.fullmatch(r"layer([1-4])\.(\d+)\.((?:conv[1-3]|bn[1-3]|downsample\.[01])\.\w+)", name)
    if not block:
        raise KeyError(name)
    inner = re.sub(r"^bn([1-3])\.", r"conv\1.norm.", block[3])
    for ours, theirs in _TO_PARTS:
        if inner.startswith(ours):
            inner = theirs + inner.removeprefix(ours)
            break
    return f"res{int(block[1]) + 1}.{block[2]}.{inner}"


def to_detectron2(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a pickle that detectron2's ``DetectionCheckpointer`` reads as ``MODEL.WEIGHTS``.

    The network has its stride in the 3x3 convolution and RGB inputs scaled to [0, 1] by ImageNet's mean and
    deviation, so detectron2 needs ``RESNETS.STRIDE_IN_1X1: False``, ``INPUT.FORMAT: RGB`` and
    ``PIXEL_MEAN/STD`` times 255 of those.

    Raises:
        KeyError: see `to_detectron2_name`.
    """
    names = {name: to_detectron2_name(name) for name in state}
    arrays = {theirs: state[ours].numpy() for ours, theirs in names.items() if theirs is not None}
    content = {"model": arrays, "__author__": "PolyScene", "matching_heuristics": True}
    # numpy 2 writes a module name that numpy before 1.26, still common beside detectron2, cannot import; the
    # old name is read by all. Protocol 3 spells names as text, and this one once, before any array's bytes.
    return pickle.dumps(content, protocol=3).replace(
        b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n", 1
    )
