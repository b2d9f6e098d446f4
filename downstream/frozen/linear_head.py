"""Linear heads that a probe left behind, for the backbone they were trained on and no other."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.weight_formats.containers import read_container
from polyscene.runtime.weights import BackboneWeights, weights_hash

HEAD_FILE = "linear_head.safetensors"
RANDOM_HEAD_FILE = "linear_head_random.safetensors"  # of the random baseline


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of pooled features.

    Attributes:
        path: its file.
        weight: (classes, C) float32.
        bias: (classes,) float32.
        class_names: name of every class.
        weights_hash: of the backbone it was trained on.
        arch: of that backbone.
        normalised: it was trained on L2-normalised features.
        view: shorter side and crop of the images it was tested on, pixels, if known.
    """

    path: Path
    weight: Tensor
    bias: Tensor
    class_names: Sequence[str]
    weights_hash: str
    arch: str
    normalised: bool
    view: tuple[int, int] | None = None

    def number(self, name: str) -> int:
        """The number of a class.

        Raises:
            UserError: it has no such class.
        """
        if name in self.class_names:
            return list(self.class_names).index(name)
        close = difflib.get_close_matches(name, self.class_names, n=1) or sorted(self.class_names)[:3]
        raise UserError(f"{self.path} has no class '{name}'; it has for example {', '.join(close)}")


def write_head(
    path: Path,
    weight: Tensor,
    bias: Tensor,
    class_names: Sequence[str],
    backbone: BackboneWeights,
    *,
    normalised: bool,
    view: tuple[int, int],
) -> Path:
    """Write a linear classifier as safetensors with what belongs to it, atomically; returns the file.

    Args:
        path: the file.
        weight: (classes, C) float32.
        bias: (classes,) float32.
        class_names: name of every class.
        backbone: the weights it was trained on.
        normalised: it was trained on L2-normalised features.
        view: shorter side and crop of the images it was tested on, pixels.
    """
    metadata = {
        "format": "pt",
        "class_names": json.dumps(list(class_names)),
        "weights_hash": weights_hash(backbone),
        "arch": backbone.arch,
        "features": "l2_normalised" if normalised else "pooled",
        "resize": str(view[0]),
        "crop": str(view[1]),
    }
    tensors = {"weight": weight.contiguous(), "bias": bias.contiguous()}
    with atomic_writer(path) as stream:
        stream.write(safetensors.torch.save(tensors, metadata=metadata))
    return path


def read_head(path: str | Path) -> LinearHead:
    """Read the head of a probe: its run directory, or the safetensors file itself.

    Raises:
        UserError: no such file, damaged, or not a head.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / HEAD_FILE).is_file():
            raise UserError(f"'{path}' has no {HEAD_FILE}; it is written by polyscene probe with protocol=linear")
        path = path / HEAD_FILE
    content = read_container(path)
    tensors, metadata = content.get("state_dict"), content.get("safetensors_metadata")
    if not isinstance(tensors, dict) or not isinstance(metadata, dict) or {"weight", "bias"} - set(tensors):
        raise UserError(f"{path}: not the linear head of a probe; polyscene probe with protocol=linear writes one")
    weight, bias = tensors["weight"].float(), tensors["bias"].float()
    try:
        names = [str(name) for name in json.loads(metadata["class_names"])]
        trained_on, arch = metadata["weights_hash"], metadata["arch"]
        normalised = {"l2_normalised": True, "pooled": False}[metadata["features"]]
        known = "resize" in metadata and "crop" in metadata
        view = (int(metadata["resize"]), int(metadata["crop"])) if known else None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: its metadata is damaged or incomplete; run polyscene probe again") from error
    if weight.dim() != 2 or weight.shape[0] != len(names) or bias.shape != weight.shape[:1]:
        shapes = f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, {len(names)} class names"
        raise UserError(f"{path}: {shapes} do not fit together; run the probe again")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise UserError(f"{path}: holds NaN or infinity; run the probe again")
    return LinearHead(path, weight, bias, names, trained_on, arch, normalised, view)


def check_head(head: LinearHead, weights: BackboneWeights, channels: int, title: str) -> None:
    """Refuse a head that belongs to another backbone.

    Args:
        head: the head.
        weights: the backbone's weights.
        channels: width of the backbone's last map.
        title: the backbone's name, for messages.

    Raises:
        UserError: another width, or other weights.
    """
    if head.weight.shape[1] != channels:
        raise UserError(
            f"{head.path} was trained on {head.weight.shape[1]} channels ({head.arch}), but '{title}' has {channels} "
            f"({weights.arch}); give the head of a probe of these weights"
        )
    if weights_hash(weights) != head.weights_hash:
        raise UserError(
            f"{head.path} was trained on other weights than '{title}' (hash {head.weights_hash}, not "
            f"{weights_hash(weights)}); give the head of a probe of these weights"
        )
