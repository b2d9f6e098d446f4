"""PNG files whose pixels are numbers: class labels, masks, grey maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import UserError
from .images import MAX_PIXELS

NUMBER_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


def read_numbers(path: Path, what: str = "label map") -> np.ndarray:
    """The stored numbers of a grey or palette PNG, palette indices not expanded: (H, W) integers.

    Args:
        path: the file.
        what: it is, for messages.

    Raises:
        UserError: not a readable PNG, or colours instead of numbers.
    """
    values, mode = _open(path, None)
    if mode not in NUMBER_MODES:
        raise UserError(f"{what} '{path}' holds colours (mode {mode}); store one number per pixel (grey or palette)")
    return values


def read_grey(path: Path) -> np.ndarray:
    """The brightness of a PNG: (H, W) uint8; a palette is applied, 16 bits keep the high byte.

    Raises:
        UserError: not a readable PNG.
    """
    values, mode = _open(path, "L")
    if mode.startswith("I"):
        return (values >> 8).astype(np.uint8)
    return values


def _open(path: Path, convert: str | None) -> tuple[np.ndarray, str]:
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
    except UnidentifiedImageError:
        raise UserError(f"cannot read the PNG '{path}': it is not a PNG file; store it as one") from None
    except FileNotFoundError:
        raise UserError(f"cannot read the PNG '{path}': it does not exist") from None
    except Exception as error:  # Pillow raises nearly every built-in exception for some broken file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the PNG '{path}': {reason}; restore the file") from error
    return values, mode
