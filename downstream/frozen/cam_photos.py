"""Photos for activation maps: which ones, and what a network sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as T

from polyscene.runtime.errors import UserError
from polyscene.runtime.features import evaluation_crop
from polyscene.runtime.images import read_image


@dataclass(frozen=True)
class Photo:
    """An image file and the class its folder names.

    Attributes:
        path: the file.
        class_name: name of its class, or None.
    """

    path: Path
    class_name: str | None


def draw_photos(photos: Sequence[Photo], count: int, seed: int) -> list[Photo]:
    """At most ``count`` photos, in their order; drawn so that classes differ in number by one at most where they can.

    Args:
        photos: all photos.
        count: how many are wanted.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(photos))
    seen: dict[str | None, int] = {}
    turns = []
    for position in shuffled:
        name = photos[position].class_name
        seen[name] = seen.get(name, 0) + 1
        turns.append(seen[name])
    # The first of every class, then the second of every class, ...; a stable sort keeps the random order of classes.
    chosen = shuffled[np.argsort(turns, kind="stable")[:count]]
    return [photos[position] for position in sorted(chosen)]


def view_of(image: Tensor, resize: int, crop: int | None) -> Tensor:
    """What the network sees: the probe's evaluation crop, or the whole image.

    Args:
        image: (3, H, W) uint8.
        resize: shorter side, pixels.
        crop: side of the central crop, pixels; None: the whole image, its longer side at most three times ``resize``
            so that a panorama does not fill the memory.

    Returns:
        (3, H', W') uint8.
    """
    if crop is not None:
        return evaluation_crop(image, resize, crop)
    height, width = image.shape[1:]
    scale = min(resize / min(height, width), 3 * resize / max(height, width))
    return T.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)


def stream_views(
    photos: Sequence[Photo], *, resize: int, crop: int | None, workers: int
) -> Iterator[tuple[Photo, Tensor]]:
    """Photos one after another with their pixels, see `view_of`; few are held at a time.

    Args:
        photos: what to read.
        resize: shorter side, pixels.
        crop: side of the central crop, pixels, or None.
        workers: processes that decode.

    Raises:
        UserError: an image cannot be decoded.
    """
    views = _Views([photo.path for photo in photos], resize, crop)
    for photo, (view, reason) in zip(photos, DataLoader(views, batch_size=None, num_workers=workers)):
        if view is None:
            raise UserError(reason)
        yield photo, view


class _Views(Dataset):
    def __init__(self, paths: Sequence[Path], resize: int, crop: int | None):
        self.paths, self.resize, self.crop = paths, resize, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        # Errors travel as text: a worker process would wrap an exception in its traceback.
        try:
            return view_of(read_image(self.paths[index]), self.resize, self.crop), ""
        except UserError as error:
            return None, str(error)
