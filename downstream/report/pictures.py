"""Picture files -> data URIs that fit into a page which can be mailed."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from polyscene.runtime.errors import UserError

BUDGET = 6_500_000
"""Bytes of all pictures of a page together, before base64 makes four of three: a page stays under 10 MB."""

LARGEST_ANIMATION = 3_000_000
"""Bytes of an animated GIF that is embedded as it is; of a larger one the first frame is shown."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_AS_IT_IS = {"JPEG", "PNG", "WEBP"}
_QUALITY = 86
# Widest picture in pixels and whether animations stay, from best to smallest.
_LEVELS = ((1600, True), (1200, True), (900, True), (900, False), (600, False))


@dataclass(frozen=True)
class Embedded:
    """A picture in the page.

    Attributes:
        uri: ``data:`` URI.
        width: pixels.
        height: pixels.
        still: of an animation, the ``data:`` URI of its first frame; else None.
        note: what was changed, for people; empty for nothing.
        size: bytes of all its data.
    """

    uri: str
    width: int
    height: int
    still: str | None
    note: str
    size: int


def embed_pictures(
    files: Sequence[Path], *, budget: int = BUDGET, progress: Callable[[int], None] | None = None
) -> dict[Path, Embedded | str]:
    """Embed files, all of them smaller and finally the last ones not at all until they fit the budget.

    Args:
        files: PNG, JPEG, WebP, GIF, BMP or TIFF; a file named twice is embedded once.
        budget: bytes for all of them together.
        progress: called with the number of files done.

    Returns:
        File -> picture, or in words why there is none.
    """
    found: dict[Path, Embedded | str] = {}
    for level, (width, animated) in enumerate(_LEVELS):
        smallest = level == len(_LEVELS) - 1
        used = 0
        for number, file in enumerate(dict.fromkeys(files), start=1):
            # A file that is missing or broken stays so, and what was small enough is not encoded again.
            if not isinstance(found.get(file), str) and not _fits_level(found.get(file), width, animated):
                found[file] = _try_embed(file, width, animated)
            picture = found[file]
            if isinstance(picture, Embedded):
                if smallest and used + picture.size > budget:
                    found[file] = f"'{file}' was left out: the page would become too large"
                    continue
                used += picture.size
            if progress:
                progress(number)
        if used <= budget:
            break
    return found


def embed_picture(file: Path, width: int = 1600, animated: bool = True) -> Embedded:
    """One picture, at most ``width`` pixels wide, in the format that is smallest.

    Raises:
        UserError: missing, not a picture, damaged, or too many pixels to decode.
    """
    try:
        data = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata: nothing a reader could act on
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                moving = getattr(image, "is_animated", False) and image.format == "GIF"
                name = image.format or ""
                image.load()
                return _embed(data, image, name, moving, width, animated)
    except FileNotFoundError:
        raise UserError(f"'{file}' is missing") from None
    except Exception as error:  # Pillow raises nearly every built-in exception for some broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{file}' is not a readable picture ({reason})") from error


def _embed(data: bytes, image: Image.Image, name: str, moving: bool, width: int, animated: bool) -> Embedded:
    upright = ImageOps.exif_transpose(image)
    unchanged = upright.size == image.size and upright.width <= width and 0x0112 not in image.getexif()
    original = upright.size
    still = _plain(upright)
    if still.width > width:
        still = still.resize((width, max(1, round(still.height * width / still.width))), Image.Resampling.LANCZOS)
    kind, encoded = _smallest(still, (name, data) if unchanged and name in _AS_IT_IS else None)
    uri = _uri(kind, encoded)
    if moving and animated and len(data) <= LARGEST_ANIMATION:
        return Embedded(_uri("GIF", data), *original, uri, "", len(data) + len(encoded))
    notes = ["first frame of an animation"] if moving else []
    if original != still.size:
        notes.append(f"scaled down from {original[0]} × {original[1]} pixels")
    return Embedded(uri, *still.size, None, "; ".join(notes), len(encoded))


def _plain(image: Image.Image) -> Image.Image:
    """RGB or RGBA, 8 bits."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if clear else "RGB")


def _smallest(image: Image.Image, original: tuple[str, bytes] | None) -> tuple[str, bytes]:
    candidates = [original] if original else []
    candidates.append(("WEBP", _encode(image, "WEBP", quality=_QUALITY, method=4)))
    if image.mode == "RGB":
        candidates.append(("JPEG", _encode(image, "JPEG", quality=_QUALITY, optimize=True)))
    if image.getcolors(4096) is not None:  # drawings; of photos a PNG is never the smallest
        candidates.append(("PNG", _encode(image, "PNG", optimize=True)))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def _encode(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    memory = io.BytesIO()
    image.save(memory, format=kind, **options)
    return memory.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _try_embed(file: Path, width: int, animated: bool) -> Embedded | str:
    try:
        return embed_picture(file, width, animated)
    except UserError as error:
        return str(error)


def _fits_level(picture: Embedded | str | None, width: int, animated: bool) -> bool:
    if not isinstance(picture, Embedded):
        return False
    return animated if picture.still else picture.width <= width
