"""Annotation files -> arrays, or one line that says what is wrong with the file. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyscene.runtime.errors import UserError


def read_list(path: Path) -> tuple[str, ...]:
    """The image names of a split file, one a line.

    Raises:
        UserError: not readable, empty, or a name occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list '{path}': {getattr(error, 'strerror', None) or error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"the list '{path}' names no image; unpack the archive again")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"the list '{path}' names '{twice}' more than once; remove one")
    return names


def read_mat(path: Path, key: str) -> np.ndarray:
    """One variable of a MATLAB 5 file.

    Raises:
        UserError: not readable, or without the variable.
    """
    import scipy.io

    try:
        content: dict[str, Any] = scipy.io.loadmat(str(path), appendmat=False, variable_names=[key])
    except Exception as error:  # scipy too raises whatever a damaged file makes it stumble on
        raise UserError(f"cannot read the MATLAB file '{path}': {_reason(error)}") from error
    if key not in content:
        raise UserError(f"the MATLAB file '{path}' has no variable '{key}'; is it from the published archive?")
    return content[key]


def read_npy(path: Path) -> np.ndarray:
    """The array of an npy file.

    Raises:
        UserError: not readable, no plain numbers, or an archive of several arrays.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:
        raise UserError(f"cannot read the npy file '{path}': {_reason(error)}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise UserError(f"the npy file '{path}' holds no plain numbers; is it from the published archive?")
    return array


def as_map(array: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) of a map that may come as (H, W, 1) or (1, H, W).

    Raises:
        UserError: it is no such thing.
    """
    squeezed = array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array
    squeezed = squeezed.squeeze(0) if squeezed.ndim == 3 and squeezed.shape[0] == 1 else squeezed
    if squeezed.ndim != 2 or 0 in squeezed.shape or squeezed.dtype.kind not in "biuf":
        raise UserError(f"'{path}' holds {array.dtype} of shape {array.shape}; a map (height, width) was expected")
    return squeezed


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
