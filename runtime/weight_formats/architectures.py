"""Which timm architecture a state dict belongs to, and how it differs from one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import UserError

# (bottleneck blocks?, blocks per stage) -> architectures of that skeleton, the plain torchvision networks first.
# Members of one row differ in stem, width or groups, that is: in shapes.
_BY_SKELETON: dict[tuple[bool, tuple[int, ...]], tuple[str, ...]] = {
    (False, (1, 1, 1, 1)): ("resnet10t",),
    (True, (1, 1, 1, 1)): ("resnet14t",),
    (False, (2, 2, 2, 2)): ("resnet18", "resnet18d"),
    (True, (2, 2, 2, 2)): ("resnet26", "resnet26d", "resnet26t"),
    (False, (3, 4, 6, 3)): ("resnet34", "resnet34d"),
    (True, (3, 4, 6, 3)): (
        *("resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnet50c", "resnet50d", "resnet50s", "resnet50t"),
        *("resnext50d_32x4d", "resnet50_gn", "seresnet50", "seresnext50_32x4d"),
    ),
    (True, (3, 4, 23, 3)): (
        *("resnet101", "wide_resnet101_2", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("resnext101_32x16d", "resnext101_32x32d", "resnet101c", "resnet101d", "resnet101s", "seresnet101"),
    ),
    (True, (3, 8, 36, 3)): ("resnet152", "resnet152c", "resnet152d", "resnet152s", "seresnet152"),
    (True, (3, 24, 36, 3)): ("resnet200", "resnet200d"),
    # HRNets have one stage of this kind; what follows it shows in names and shapes.
    (True, (1,)): ("hrnet_w18_small",),
    (True, (2,)): ("hrnet_w18_small_v2",),
    (True, (4,)): (
        *("hrnet_w18", "hrnet_w30", "hrnet_w32", "hrnet_w40", "hrnet_w44", "hrnet_w48", "hrnet_w64"),
        *("hrnet_w18_ssld", "hrnet_w48_ssld"),
    ),
}
# Parts of an HRNet that only lead from its four scales to a class: files of features go without some or all of them.
_HRNET_POOLING = ("incre_modules.", "downsamp_modules.", "final_layer.")
# The networks that torchvision has, under the same names and keys.
TORCHVISION_ARCHITECTURES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
_COUNTER = "num_batches_tracked"


def expected_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of ``timm.create_model(arch, num_classes=0)``, without allocating it.

    Raises:
        UserError: timm has no such model; suggests near names.
    """
    import timm  # here, because importing timm takes seconds and most commands never need it

    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models("*res*"), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models('*resnet*')"
        raise UserError(f"architecture {arch!r} is not known to timm; {hint}")
    with torch.device("meta"):
        model = timm.create_model(arch, pretrained=False, num_classes=0)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def with_counters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Add the ``num_batches_tracked`` = 0 that old and detectron2 files lack, and count them.

    The counter is not used for normalisation (BatchNorm momentum is a constant), so 0 changes nothing.
    """
    complete: dict[str, Tensor] = {}
    added = 0
    for key, value in state.items():
        complete[key] = value
        counter = key.removesuffix("running_var") + _COUNTER
        if key.endswith(".running_var") and counter not in state:
            complete[counter] = torch.zeros((), dtype=torch.int64)
            added += 1
    return complete, added


def difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """How a state dict differs from what is wanted.

    Returns:
        The number of differing tensors, and a phrase that names the first few of each sort (empty if none differ).
    """
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshaped = [key for key in wanted if key in found and tuple(found[key]) != tuple(wanted[key])]
    shapes = [f"{key} {tuple(found[key])} instead of {tuple(wanted[key])}" for key in misshaped]
    parts = []
    for names, word in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape")):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {word} ({listed})")
    return len(missing) + len(unexpected) + len(misshaped), ", ".join(parts)


def difference_to(arch: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """How a state dict differs from a backbone; an HRNet may lack whole parts that only its classifier uses.

    Args:
        arch: timm name.
        shapes: key -> shape, counters included.

    Returns:
        See `difference`.

    Raises:
        UserError: see `expected_shapes`.
    """
    absent = tuple(part for part in _HRNET_POOLING if not any(key.startswith(part) for key in shapes))
    wanted = expected_shapes(arch)
    return difference(shapes, {key: shape for key, shape in wanted.items() if not key.startswith(absent)})


def find_architecture(shapes: Mapping[str, tuple[int, ...]], subject: str) -> str:
    """The timm name of the network with exactly these keys and shapes, see `difference_to`.

    Networks that differ only in operations without weights (``resnetblur50`` from ``resnet50``) cannot be told
    apart and count as the plain one; their users name them.

    Args:
        shapes: torchvision key -> shape, counters included.
        subject: how messages begin (the file and its format).

    Raises:
        UserError: no network fits; names the differences to the nearest one.
    """
    import timm

    bottleneck, depths = _skeleton(shapes)
    differences: dict[str, tuple[int, str]] = {}
    for name in _BY_SKELETON.get((bottleneck, depths), ()):
        if timm.is_model(name):
            differences[name] = difference_to(name, shapes)
            if differences[name][0] == 0:
                return name
    nearest = min(differences, key=lambda name: differences[name][0], default=None)
    if nearest is not None and differences[nearest][0] <= len(shapes) // 2:
        phrase = differences[nearest][1]
        raise UserError(
            f"{subject}: is nearly {nearest}, but {phrase}; "
            "use a complete file, or give arch=NAME if it is another network"
        )
    blocks = "bottleneck" if bottleneck else "basic"
    raise UserError(
        f"{subject}: {blocks} blocks {'-'.join(map(str, depths)) or 'none'} in {len(shapes)} tensors fit no "
        "ResNet or HRNet known here; give the timm name with arch=NAME"
    )


def _skeleton(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, tuple[int, ...]]:
    blocks: dict[int, set[int]] = {}
    for key in shapes:
        match = re.match(r"layer(\d+)\.(\d+)\.", key)
        if match:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    depths = tuple(len(blocks[stage]) for stage in sorted(blocks))
    return "layer1.0.conv3.weight" in shapes, depths
