"""From a path to nested dictionaries of tensors, whatever the container: safetensors, torch or pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..safe_pickle import damaged, is_torch_legacy, load_array_pickle, load_torch_file

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_container(path: Path) -> dict[str, Any]:
    """Read a weight file of any kind without running anything in it.

    Returns:
        The top-level dictionary. Numpy arrays have become tensors. A safetensors file gives
        ``{"state_dict": ..., "safetensors_metadata": {...}}``.

    Raises:
        UserError: the file is missing, damaged, unsafe or no weight file at all; says which.
    """
    head = _first_bytes(path)
    if head[:4] == b"PK\x03\x04" or is_torch_legacy(head):
        content = load_torch_file(path)
    elif len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return _read_safetensors(path)
    elif head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        content = load_array_pickle(path)
    else:
        raise UserError(
            f"{path}: {_what_it_is(head)}; give a run directory, .safetensors, .pth or .pkl file with weights"
        )
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind}, not a dictionary of weights; save model.state_dict() instead")
    return dict(content)


def state_dict_of(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under ``state_dict``, ``model`` or ``model_state_dict``, or at the top itself.

    Anything that is not a tensor is dropped, and so is a ``module.`` that every name starts with.
    """
    nested = next((raw[name] for name in _WRAPPERS if isinstance(raw.get(name), Mapping)), raw)
    return without_module(nested)


def without_module(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without the ``module.`` that DistributedDataParallel puts before every name."""
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or directory; check the path of the weights") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not head:
        raise UserError(f"{path}: is empty; copy or download it again")
    return head


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise damaged(path, error) from error
    return {"state_dict": tensors, "safetensors_metadata": metadata}


def _what_it_is(head: bytes) -> str:
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page, so the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer (run `git lfs pull`)"
    if head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar":
        return "is a compressed or tar archive (unpack it first)"
    if head[:4] == b"\x89HDF":
        return "is an HDF5 file (Keras), which is not read"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "is a text file, not weights"
    return "is not a weight file of a known kind"
