"""Which frames and masks make a video: the DAVIS-2017 layout, or a folder of frames with a mask."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyscene.runtime.errors import UserError

from .masks import image_size, read_mask

_FRAMES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif")
RESOLUTION = "480p"


@dataclass(frozen=True)
class Video:
    """Frames in their order, and their masks.

    Attributes:
        name: of the sequence; results are stored under it.
        frames: image files.
        masks: mask files: one per frame, or only that of the first.
        closed: whether masks may hold only the objects of the first mask; otherwise later objects are background, as
            in the official evaluation of DAVIS.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    closed: bool

    @property
    def scored(self) -> bool:
        """Whether every frame has a mask to compare with."""
        return len(self.masks) == len(self.frames)


def davis_videos(root: Path, split: str = "val", names: Sequence[str] | None = None) -> list[Video]:
    """Sequences of the DAVIS-2017 layout: ``JPEGImages/480p/S``, ``Annotations/480p/S``, ``ImageSets/2017/SPLIT.txt``.

    Args:
        root: the folder ``DAVIS``.
        split: name of the list: val, train, test-dev.
        names: only these sequences of the list, in this order.

    Raises:
        UserError: a folder or file of the layout is missing, or a name is not in the list.
    """
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise UserError(f"'{listing}' does not exist; data.root must be the DAVIS-2017 folder with ImageSets/2017")
    known = listing.read_text(encoding="utf-8", errors="replace").split()
    if not known:
        raise UserError(f"'{listing}' names no sequence; unpack DAVIS-2017 again")
    for name in names or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(known)}"
            raise UserError(f"data.sequences: '{name}' is not in '{listing}'; {hint}")
    return [
        _pair(
            name,
            root / "JPEGImages" / RESOLUTION / name,
            root / "Annotations" / RESOLUTION / name,
            closed=False,
        )
        for name in (names or known)
    ]


def folder_video(frames: Path, masks: Path) -> Video:
    """One video: a folder of frames, and the first frame's mask or a folder of masks named like the frames.

    Raises:
        UserError: no frames, two frames of one name, no mask of the first frame, or masks of some frames only.
    """
    return _pair(frames.resolve().name, frames, masks, closed=True)


def check_video(video: Video) -> None:
    """Look at what can be seen without decoding the video: file headers, and the first mask.

    Raises:
        UserError: too few frames, frames of several sizes, a mask of another size than its frame, or a first mask
            without objects or with values that are no labels.
    """
    least = 3 if video.scored else 2
    if len(video.frames) < least:
        why = "scores leave the first and the last frame out" if video.scored else "there is nothing to propagate to"
        raise UserError(f"'{video.frames[0].parent}' holds {len(video.frames)} frames, {why}; give at least {least}")
    size = image_size(video.frames[0])
    for frame in video.frames[1:]:
        other = image_size(frame)
        if other != size:
            raise UserError(
                f"'{frame}' has {other[1]} x {other[0]} pixels, the first frame {size[1]} x {size[0]}; "
                "all frames of a video must have one size"
            )
    for mask in video.masks:
        _check_size(mask, size)
    read_mask(video.masks[0]).object_labels()


def _check_size(mask: Path, size: tuple[int, int]) -> None:
    height, width = image_size(mask)
    if (height, width) != size:
        raise UserError(
            f"mask '{mask}' has {width} x {height} pixels, its frame {size[1]} x {size[0]}; "
            "resize it with nearest-neighbour interpolation"
        )


def _pair(name: str, frames: Path, masks: Path, *, closed: bool) -> Video:
    images = _listed(frames, _FRAMES, "frames")
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    if count > 1:
        raise UserError(f"'{frames}' holds '{stem}' with two endings; keep frames and masks in separate folders")
    if masks.is_file():
        return Video(name, images, (masks,), closed)
    by_stem = {path.stem: path for path in _listed(masks, _MASKS, "masks")}
    found = [by_stem.get(frame.stem) for frame in images]
    if found[0] is None:
        raise UserError(f"'{masks}' holds no mask of the first frame '{images[0].name}'; add '{images[0].stem}.png'")
    missing = [frame.name for frame, mask in zip(images, found) if mask is None]
    if not missing:
        return Video(name, images, tuple(found), closed)
    if len(missing) == len(images) - 1:
        return Video(name, images, (found[0],), closed)
    raise UserError(
        f"'{masks}' holds no mask of {len(missing)} of {len(images)} frames (first: '{missing[0]}'); "
        "give masks of all frames, or of the first one only"
    )


def _listed(folder: Path, endings: Sequence[str], what: str) -> tuple[Path, ...]:
    """Files of these kinds in natural order: frame 2 comes before frame 10."""
    if not folder.is_dir():
        raise UserError(f"folder of {what} '{folder}' does not exist; check the data.* keys")
    files = [p for p in folder.iterdir() if p.suffix.lower() in endings and not p.name.startswith(".")]
    if not files:
        raise UserError(f"'{folder}' holds no {what} ({', '.join(endings)}); check the data.* keys")
    return tuple(sorted(files, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name)))
