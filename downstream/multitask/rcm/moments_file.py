"""Response moments as a safetensors file that knows which weights they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.weights import BackboneWeights, weights_hash

from .moments import Moments, moments_from_state, moments_to_state

_KIND = "response moments"


def moments_metadata(weights: BackboneWeights, images: int, **more: str) -> dict[str, str]:
    """What a moments file records: hash and architecture of the weights, number of images, and ``more``."""
    return {"weights": weights_hash(weights), "arch": weights.arch, "images": str(images), **more}


def save_moments(path: Path | str, moments: Mapping[str, Moments], metadata: Mapping[str, str]) -> None:
    """Write moments with their metadata; an existing file is replaced in one step.

    Args:
        path: the file, ``*.safetensors``.
        moments: name of the convolution -> moments.
        metadata: of :func:`moments_metadata`.

    Raises:
        UserError: the file cannot be written.
    """
    state = {key: value.contiguous() for key, value in moments_to_state(moments).items()}
    content = safetensors.torch.save(state, {**metadata, "kind": _KIND})
    with atomic_writer(Path(path)) as file:
        file.write(content)


def load_moments(path: Path | str, weights: BackboneWeights | None = None) -> dict[str, Moments]:
    """Read moments back.

    Args:
        path: what :func:`save_moments` wrote.
        weights: the weights they must have been measured with; None: any.

    Raises:
        UserError: no such file, damaged, another kind of file, or moments of other weights.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if weights is not None and metadata.get("weights") != weights_hash(weights):
        raise UserError(
            f"'{path}' holds the response moments of other weights ({metadata.get('arch', 'unknown')}); "
            "compute them again from these weights"
        )
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error
    try:
        return moments_from_state(state)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a moments file: ``weights`` (hash), ``arch``, ``images`` and what else was saved.

    Raises:
        UserError: no such file, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; compute the response moments first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error
    if metadata.get("kind") != _KIND:
        raise UserError(f"'{path}' does not hold response moments; give a file that was saved with them")
    return metadata


def _damaged(path: Path) -> UserError:
    return UserError(f"'{path}' cannot be read as a safetensors file; compute the response moments again")
