"""Annotation files -> arrays, or one line that says what is wrong with the file. Nothing is ever unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import MAX_PIXELS

_NUMBER_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


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


def read_numbers(path: Path) -> np.ndarray:
    """The stored numbers of a grey or palette PNG, palette indices not expanded: (H, W) integers.

    Raises:
        UserError: not a readable PNG, or colours instead of numbers.
    """
    values, mode = _open_png(path, None)
    if mode not in _NUMBER_MODES:
        raise UserError(f"label map '{path}' holds colours (mode {mode}); store class numbers (grey or palette PNG)")
    return values


def read_grey(path: Path) -> np.ndarray:
    """The brightness of a PNG: (H, W) uint8; a palette is applied, 16 bits keep the high byte.

    Raises:
        UserError: not a readable PNG.
    """
    values, mode = _open_png(path, "L")
    if mode.startswith("I"):
        return (values >> 8).astype(np.uint8)
    return values


def _open_png(path: Path, convert: str | None) -> tuple[np.ndarray, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"'{path}': {image.width} x {image.height} pixels, more than are decoded")
                mode = image.mode
                values = np.array(image.convert(convert) if convert and not mode.startswith("I") else image)
    except UserError:
        raise
    except Exception as error:  # Pillow raises nearly every built-in exception for some broken file
        raise UserError(f"cannot read the PNG '{path}': {_reason(error)}") from error
    return values, mode


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
