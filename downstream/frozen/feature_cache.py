"""Frozen features on disk, so that a backbone sees a data set once however many probes are tried on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer

_VERSION = 1  # of what the numbers mean; another one makes all older files useless


@dataclass(frozen=True)
class FeatureKey:
    """Everything that decides the features.

    Attributes:
        arch: timm name of the backbone.
        weights: hash of its weights.
        data: fingerprint of the images, in order.
        resize: shorter side, pixels.
        crop: side of the central crop, pixels.
        precision: ``fp32`` or ``bf16``.
    """

    arch: str
    weights: str
    data: str
    resize: int
    crop: int
    precision: str

    def text(self) -> str:
        """The key as JSON."""
        return json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)

    def file(self, folder: Path) -> Path:
        """Where features of this key lie."""
        return folder / f"{self.arch}-{hashlib.sha256(self.text().encode()).hexdigest()[:16]}.safetensors"


def open_cache(folder: str | None) -> Path | None:
    """The cache folder, made if absent; None for no cache.

    Raises:
        UserError: it cannot be made.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache='{folder}' cannot be made ({error.strerror}); name another folder, or cache=null"
        ) from error
    return path


def cached_features(
    folder: Path | None, key: FeatureKey, count: int, compute: Callable[[], Tensor], log: Callable[[str], None]
) -> Tensor:
    """The features of a key from its file, or computed and then kept there.

    A file that is damaged, or belongs to something else, is never used: it is logged, computed anew and replaced. A
    cache that cannot be written is logged and costs nothing but the time of the next computation.

    Args:
        folder: of the cache; None: neither read nor written.
        key: what decides the features.
        count: number of images.
        compute: makes the features, (count, C) float32 on the CPU.
        log: takes a line.
    """
    if folder is None:
        return compute()
    file = key.file(folder)
    if file.exists():
        try:
            features = _read(file, key, count)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log(f"cached features '{file}' are damaged ({reason}); computing them again")
        else:
            log(f"features of {count} images from the cache: '{file}'")
            return features
    features = compute()
    try:
        _write(file, key, features)
    except UserError as error:
        log(f"features are not cached: {error}")
    return features


def _read(file: Path, key: FeatureKey, count: int) -> Tensor:
    with safe_open(str(file), framework="pt") as content:
        metadata = content.metadata() or {}
        if metadata.get("key") != key.text():
            raise ValueError("it was written for other features")
        features = content.get_tensor("features")
    if features.dtype != torch.float32 or features.dim() != 2 or len(features) != count:
        raise ValueError(f"it holds {features.dtype} {tuple(features.shape)}, not a row for each of {count} images")
    if metadata.get("checksum") != _checksum(features):
        raise ValueError("its checksum does not match")
    return features


def _write(file: Path, key: FeatureKey, features: Tensor) -> None:
    features = features.contiguous()
    content = safetensors.torch.save(
        {"features": features}, metadata={"format": "pt", "key": key.text(), "checksum": _checksum(features)}
    )
    with atomic_writer(file) as stream:
        stream.write(content)


def _checksum(features: Tensor) -> str:
    return hashlib.blake2b(features.numpy().data, digest_size=16).hexdigest()
