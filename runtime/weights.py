"""Backbone weights: read every known format, load them strictly, write exports.

Whatever the source, a backbone is a timm network plus a state dict with torchvision/timm ResNet names. One file per
family of formats in ``weight_formats/`` translates names; this module finds out which family a file belongs to,
which architecture it holds, and accepts nothing that is not complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .errors import UserError
from .files import atomic_writer
from .weight_formats.architectures import (
    TORCHVISION_ARCHITECTURES,
    difference,
    difference_to,
    find_architecture,
    with_counters,
)
from .weight_formats.containers import read_container
from .weight_formats.detectron2 import parse_detectron2, to_detectron2
from .weight_formats.moco import parse_moco, to_moco
from .weight_formats.pretrain import find_in_run, parse_checkpoint
from .weight_formats.records import BackboneWeights, Parsed, TrainingState
from .weight_formats.torchvision import parse_dino, parse_torchvision
from .weight_formats.vissl import parse_vissl

__all__ = [
    "WRITABLE_FORMATS",
    "BackboneWeights",
    "TrainingState",
    "load_backbone",
    "read_weights",
    "weights_hash",
    "write_weights",
]

WRITABLE_FORMATS = ("safetensors", "torchvision", "timm", "moco", "detectron2")

# What else people try to load -> a part of a name that gives it away.
_OTHER_KINDS = (
    ("patch_embed.", "a Vision Transformer"),
    ("class_token", "a Vision Transformer"),
    ("cls_token", "a Vision Transformer"),
    ("attnpool.", "CLIP's ResNet"),
    ("base_encoder.", "a MoCo-v3 checkpoint"),
    ("res2_0_branch2a_w", "a Caffe2 model (BGR images, stride in the 1x1 convolution)"),
    ("embedder.embedder.", "a Hugging Face ResNet"),
    ("downsample_layers.", "a ConvNeXt"),
    ("stages.", "a ConvNeXt or RegNet"),
    ("layer1.0.conv1.weight", "a ResNet inside another model; save that part alone"),
)


def read_weights(path: Path | str, arch: str | None = None, *, with_training: bool = False) -> BackboneWeights:
    """Read a backbone from a run directory or from any known weight file.

    Known are: a PolyScene run directory, its ``backbone.safetensors`` and training checkpoints; MoCo checkpoints;
    torchvision and timm state dicts of ResNets, timm's of HRNets (.pth or .safetensors); SwAV, DeepCluster-v2 and DINO
    ResNets; VISSL trunks; detectron2 backbones. Nothing in the file is ever run.

    Args:
        path: the file or run directory.
        arch: timm name; by default it is found from the file.
        with_training: also keep heads, momentum encoder and queues where the file has them (a run directory is then
            read from its newest checkpoint).

    Returns:
        Complete weights: exactly the tensors of ``timm.create_model(arch, num_classes=0)``; of an HRNet, those of the
        parts that only its classifier uses where the file has them.

    Raises:
        UserError: no such file; not weights, damaged or unsafe; neither ResNet nor HRNet; incomplete; not finite; the
            architecture is unclear or not `arch`.
    """
    path = Path(path)
    if path.is_dir():
        path = find_in_run(path, checkpoint=with_training)
    parsed = _parse(read_container(path), path, with_training)
    state, counters_set = with_counters(_own_copies(parsed.backbone))
    arch = _settle_architecture(parsed, state, arch, path)
    infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        raise UserError(
            f"{path}: {len(infinite)} tensors hold NaN or infinity (first: {infinite[0]}); the training that wrote it "
            "had diverged, use an earlier checkpoint"
        )
    training = parsed.training
    if training is not None:
        training = replace(
            training,
            query_head=_own_copies(training.query_head),
            key_backbone=with_counters(_own_copies(training.key_backbone))[0],
            key_head=_own_copies(training.key_head),
        )
    return BackboneWeights(
        arch, state, parsed.metadata, parsed.source_format, path, counters_set, parsed.left_aside, training
    )


def load_backbone(model: nn.Module, weights: BackboneWeights) -> str:
    """Load weights into a backbone; every tensor on either side must have its counterpart.

    Args:
        model: a network with torchvision/timm ResNet names and no classifier, for example
            ``timm.create_model(weights.arch, num_classes=0)``.
        weights: what `read_weights` returned.

    Returns:
        A line for the log: ``318/318 tensors matched``, and what was added or left aside.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; the model is then unchanged.
    """
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state, added = with_counters(weights.state)
    # Frozen batch norms have no counters, and do without those of the file.
    state = {key: value for key, value in state.items() if key in wanted or not key.endswith(".num_batches_tracked")}
    count, phrase = difference({key: tuple(value.shape) for key, value in state.items()}, wanted)
    if count:
        origin = f"{weights.path or 'these weights'} ({weights.source_format}, {weights.arch})"
        raise UserError(
            f"{origin} does not fit the model: {phrase}; "
            f"build it with timm.create_model({weights.arch!r}, num_classes=0)"
        )
    model.load_state_dict(state, strict=True)
    counters = min(max(added, weights.counters_set), sum(key.endswith(".num_batches_tracked") for key in wanted))
    line = f"{len(wanted) - counters}/{len(wanted)} tensors matched"
    if counters:
        line += f", {counters} num_batches_tracked counters, which the file lacks, set to 0"
    if weights.left_aside:
        line += "; left aside: " + ", ".join(f"{name} ({number})" for name, number in weights.left_aside.items())
    return line


def write_weights(weights: BackboneWeights, path: Path | str, format: str = "safetensors") -> None:
    """Write a backbone for other programs; an existing file is replaced in one step.

    ``safetensors`` (torchvision names, with metadata) and ``timm`` hold the backbone of any architecture;
    ``torchvision`` and ``detectron2`` need one that those libraries have; ``moco`` writes both encoders and the
    queues, so it needs ``read_weights(..., with_training=True)`` of a source that has them.

    Raises:
        UserError: unknown format; the architecture or the source does not suit it; `weights.state` is incomplete;
            the file cannot be written.
    """
    path = Path(path)
    if format not in WRITABLE_FORMATS:
        raise UserError(f"format {format!r} is not known; choose one of {', '.join(WRITABLE_FORMATS)}")
    state, _ = with_counters(_own_copies(weights.state))
    weights = replace(weights, state=state)
    count, phrase = difference_to(weights.arch, _shapes(state))
    if count:
        raise UserError(f"{path}: not written, the weights are not a complete {weights.arch}: {phrase}")
    if format == "safetensors":
        metadata = {
            "format": "pt",
            "arch": weights.arch,
            **{key: str(value) for key, value in weights.metadata.items()},
        }
        content = _safetensors_bytes(state, metadata)
        _write(path, lambda stream: stream.write(content))
    elif format == "detectron2":
        content = _detectron2_bytes(weights, path)
        _write(path, lambda stream: stream.write(content))
    elif format == "moco":
        if weights.training is None:
            raise UserError(
                f"{path}: not written, the moco format needs the momentum encoder and the queues, and "
                f"{weights.path or 'these weights'} holds the backbone only; export from a run with its checkpoints"
            )
        checkpoint = to_moco(weights, weights.training)
        _write(path, lambda stream: torch.save(checkpoint, stream))
    else:
        if format == "torchvision" and weights.arch not in TORCHVISION_ARCHITECTURES:
            raise UserError(f"{path}: not written, torchvision has no {weights.arch}; use --format timm or safetensors")
        _write(path, lambda stream: torch.save(state, stream))


def _parse(raw: Mapping[str, Any], path: Path, with_training: bool) -> Parsed:
    parsed = (
        parse_checkpoint(raw, path, with_training)
        or parse_dino(raw)
        or parse_vissl(raw)
        or parse_moco(raw, with_training)
        or parse_detectron2(raw)
        or parse_torchvision(raw)
    )
    if parsed is None or not parsed.backbone:
        raise UserError(
            f"{path}: {_resemblance(raw)}; give a ResNet or HRNet in one of the formats listed in the README"
        )
    return parsed


def weights_hash(weights: BackboneWeights) -> str:
    """16 hexadecimal digits that depend on the architecture and on every value of every tensor."""
    digest = hashlib.sha256(weights.arch.encode())
    for key in sorted(weights.state):
        value = weights.state[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


def _resemblance(raw: Mapping[str, Any]) -> str:
    """What an unknown file looks like, in words."""
    names: list[str] = []
    pending: list[tuple[str, Any]] = [("", raw)]
    # Three levels are enough to see the names, and keep a large file cheap.
    for _ in range(3):
        pending = [
            (str(key), item) for _, mapping in pending if isinstance(mapping, Mapping) for key, item in mapping.items()
        ]
        names += [name for name, item in pending if isinstance(item, Tensor)]
    if not names:
        return f"holds no tensors under its keys ({', '.join(map(str, list(raw)[:4])) or 'none'})"
    for mark, kind in _OTHER_KINDS:
        if any(mark in name for name in names):
            return f"looks like {kind}"
    return f"holds {len(names)} tensors with unknown names ({', '.join(names[:3])}, ...)"


def _settle_architecture(parsed: Parsed, state: Mapping[str, Tensor], arch: str | None, path: Path) -> str:
    """The architecture asked for, named in the file, or seen from the shapes, in this order; always verified."""
    subject = f"{path} ({parsed.source_format})"
    shapes = _shapes(state)
    if arch is not None:
        count, phrase = difference_to(arch, shapes)
        if count:
            raise UserError(f"{subject}: is not {arch}: {phrase}; leave arch out to have it found")
        return arch
    if parsed.arch is not None and _fits(parsed.arch, shapes):
        return parsed.arch
    return find_architecture(shapes, subject)


def _fits(arch: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        return difference_to(arch, shapes)[0] == 0
    except UserError:  # a name that only the program that wrote the file knows
        return False


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _own_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 CPU copies: not tied to a mapped file, to each other or to a model that goes on training."""
    copies = {}
    for key, value in state.items():
        kind = torch.float32 if value.is_floating_point() else value.dtype
        copies[key] = value.detach().to("cpu", kind, copy=True).contiguous()
    return copies


def _detectron2_bytes(weights: BackboneWeights, path: Path) -> bytes:
    try:
        return to_detectron2(weights.state)
    except KeyError as error:
        raise UserError(
            f"{path}: not written, detectron2's ResNet has no place for {error.args[0]} of {weights.arch}; "
            "use --format timm"
        ) from None


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace `path` by what `write` puts into a stream, in one step; missing folders are made."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    # A stream, not a path: torch would put the temporary file's name inside the archive.
    with atomic_writer(path) as stream:
        write(stream)


def _safetensors_bytes(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in a fixed order, so that equal runs give equal files."""
    content = safetensors.torch.save(state, metadata=metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
