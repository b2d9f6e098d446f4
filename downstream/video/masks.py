"""Mask files: read with their label values, and written as DAVIS does (palette PNG)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.images import MAX_PIXELS
from polyscene.runtime.png import NUMBER_MODES

VOID = 255
MAX_OBJECTS = 64
_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP", "PPM")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Mask:
    """A mask file's content.

    Attributes:
        path: the file.
        values: (H, W) uint8, as stored.
    """

    path: Path
    values: np.ndarray

    def object_labels(self) -> tuple[int, ...]:
        """The label of every object: 1 for a mask of 0 and 255, else every value from 1 to 254 that occurs.

        255 beside other labels is void, which the official evaluation reads as background.

        Raises:
            UserError: no object, or so many values that the picture is no label map.
        """
        present = [int(value) for value in np.unique(self.values) if value]
        labels = tuple(value for value in present if value != VOID)
        if not present:
            raise UserError(f"mask '{self.path}' holds no object: every pixel is 0; mark the object in the first frame")
        if len(labels) > MAX_OBJECTS:
            raise UserError(
                f"mask '{self.path}' holds {len(present)} label values; a mask has one value per object, "
                "without smooth edges, in a lossless file"
            )
        return labels or (1,)

    def label_map(self, first: Mask, *, closed: bool) -> np.ndarray:
        """(H, W) uint8 with the labels of ``first.object_labels()`` and 0 elsewhere.

        Args:
            first: the mask of the video's first frame, which says what values mean.
            closed: other values are an error; otherwise they are background.

        Raises:
            UserError: another size than ``first``; values that ``first`` does not have.
        """
        if self.values.shape != first.values.shape:
            (height, width), (wanted_height, wanted_width) = self.values.shape, first.values.shape
            raise UserError(
                f"mask '{self.path}' has {width} x {height} pixels, the first one {wanted_width} x {wanted_height}"
            )
        labels = first.object_labels()
        table = np.zeros(256, dtype=np.uint8)
        table[list(labels)] = labels
        if VOID in first.values and not set(np.unique(first.values)) - {0, VOID}:
            table[1] = 0
            table[VOID] = 1
        mapped = table[self.values]
        strange = np.unique(self.values[(mapped == 0) & (self.values != 0) & (self.values != VOID)])
        if closed and strange.size:
            shown = ", ".join(str(value) for value in strange[:5]) + (", ..." if strange.size > 5 else "")
            raise UserError(
                f"mask '{self.path}' holds the label values {shown}, which the first mask '{first.path.name}' does not "
                "have; objects must be marked in the first frame, in lossless files without smooth edges"
            )
        return mapped


def read_mask(path: Path) -> Mask:
    """Read a mask: palette or grey picture, 1, 8 or 16 bits, or colours with equal channels.

    Raises:
        UserError: cannot be read, is a colour picture, or holds values above 255.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"mask '{path}' claims {image.width} x {image.height} pixels; it is damaged")
                image.load()
                if image.mode == "LA":
                    image = image.convert("L")
                elif image.mode not in NUMBER_MODES:
                    image = image.convert("RGB")
                values = np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # Pillow raises nearly every built-in exception for some broken file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read mask '{path}': {reason}") from error
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise UserError(f"mask '{path}' is a colour picture; store label values: a palette or grey PNG")
        values = values[..., 0]
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"mask '{path}' holds values up to {values.max()}; labels are 0 (background) to 254")
    return Mask(path, np.ascontiguousarray(values, dtype=np.uint8))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from an image file's header, as a viewer would show it.

    Raises:
        UserError: not an image.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            # Of other formats Pillow would decode the whole picture to find its orientation.
            exif = image.getexif() if image.format in ("JPEG", "MPO") else {}
            turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        reason = getattr(error, "strerror", None) or "it is not an image, or damaged"
        raise UserError(f"cannot read '{path}': {reason}") from error
    return (width, height) if turned else (height, width)


def davis_palette() -> list[int]:
    """The 768 numbers of the palette of DAVIS: 22 colours from the bits of the label, then greys."""
    # Bit 0, 1, 2 of a label set red, green, blue to 128; bits 3 and 4 add 64 to red and green, cut off at 191.
    colours = []
    for label in range(256):
        if label >= 22:
            colours += [label] * 3
            continue
        for channel in range(3):
            value = 128 * (label >> channel & 1) + 64 * (label >> channel + 3 & 1)
            colours.append(min(value, 191))
    return colours


def write_mask(path: Path, labels: np.ndarray) -> None:
    """Write a (H, W) uint8 label map as a palette PNG, atomically."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8), mode="P")
    image.putpalette(davis_palette())
    with atomic_writer(path) as file:
        image.save(file, format="PNG")
