"""Image files of real data sets -> uint8 RGB tensors, or one line that says why not."""

from __future__ import annotations

import io
import os
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import UserError

try:  # torchvision announces that its decoders will go away; Pillow then does all the work, a little slower.
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # pragma: no cover
    decode_jpeg = None

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded: a file of a few kilobytes may claim 65,535 x 65,535.

The bound is the one at which Pillow raises `DecompressionBombError`.
"""

# No format whose reader runs other programs (EPS starts ghostscript) or that no image data set uses.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112


class UnreadableImage(UserError):
    """An image that cannot be decoded.

    Attributes:
        name: the file, as the caller called it.
        reason: what is wrong with it, without the name.
    """

    def __init__(self, name: str, reason: str):
        # Both go into `args`, so that the exception survives pickling between processes.
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image '{self.name}': {self.reason}"


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read and decode one image file; see `decode_image`.

    Raises:
        UnreadableImage: the file cannot be opened, or is not a whole image of a known format.
    """
    return decode_image(read_file(path), os.fspath(path))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file.

    Raises:
        UnreadableImage: it cannot be opened or read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableImage(os.fspath(path), error.strerror or str(error)) from error


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an image file's bytes, whatever their name says, as a viewer would show them.

    Grey, palette, CMYK (ink values inverted, as Adobe writes them and all readers assume) and 16-bit images (the high
    byte is kept) become 8-bit RGB; transparency is put on white; the EXIF orientation is applied; of an animation the
    first picture is taken. Colour profiles are ignored. A truncated file is an error. Damage within a JPEG file whose
    end is intact is not noticed: libjpeg decodes on.

    Args:
        data: the file's content: JPEG, PNG, GIF, BMP, WebP, TIFF or PPM.
        name: what an error calls the image.

    Returns:
        (3, H, W) uint8, RGB, stored pixel by pixel (channels last): ``.permute(1, 2, 0)`` is contiguous.

    Raises:
        UnreadableImage: nothing in the file, not an image, truncated, more than `MAX_PIXELS` pixels, or pixel values
            without a known range (32-bit).
    """
    if not data:
        raise UnreadableImage(name, "the file is empty")
    header = _jpeg_header(data)
    if header is not None:
        _check_pixels(header.width, header.height, name)
        if decode_jpeg is not None and header.ordinary:
            try:
                image = decode_jpeg(
                    torch.frombuffer(bytearray(data), dtype=torch.uint8),
                    mode=ImageReadMode.RGB,
                    apply_exif_orientation=True,
                )
                return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
            except RuntimeError:
                pass  # Pillow says in a few words what is wrong with it, or can read it after all.
    return torch.from_numpy(_decode_with_pillow(data, name)).permute(2, 0, 1)


class _JpegHeader(NamedTuple):
    width: int
    height: int
    ordinary: bool  # 8 bits, grey or three colours


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """Size and kind of a JPEG file, from its first frame header (ITU-T T.81, B.2.2); None if there is none."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, components = data[position + 4], data[position + 9]
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return _JpegHeader(width, height, precision == 8 and components in (1, 3) and height > 0)
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without content
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(name, f"{width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded")


def _decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8, contiguous and writable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata, large images: nothing a user could act on
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_pixels(*image.size, name)
                if image.format in ("JPEG", "MPO"):
                    _check_jpeg_end(data, name)
                image.load()
                pixels = _to_rgb(image, name)
                orientation = _orientation(image)
    except (UnreadableImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        reason = "not an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)"
        raise UnreadableImage(name, reason) from None
    except Exception as error:  # Pillow raises nearly every built-in exception for some broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(name, reason) from error
    return np.array(_turn(pixels, orientation), order="C")


def _check_jpeg_end(data: bytes, name: str) -> None:
    # A download that stopped half-way and was padded: Pillow would fill the missing part with grey.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise UnreadableImage(name, "truncated: the end-of-image marker is missing")


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen_bit:
        # As Pillow does for 16-bit colour; its own conversion of grey would clip everything above 255.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise UnreadableImage(name, f"32-bit pixel values (mode {image.mode}) have no known range; store 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # The colour under transparent pixels is arbitrary; such pictures are drawn for a white page.
        colour = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # metadata that cannot be parsed is no reason to lose the picture
        return 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation (1..8; CIPA DC-008, tag 0x0112) of (H, W, 3) pixels; other values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
