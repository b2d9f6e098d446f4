"""How worker processes get at the images: from their files, or from a pack of decoded ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.images import UnreadableImage, read_image
from polyscene.runtime.transport import shared_buffer

from .batches import pack_images
from .packed_cache import ImagePack
from .sources import ImageSource


class Gathered(NamedTuple):
    """The images of a batch as they leave a worker; see `ImageBatch` for the fields."""

    pixels: Tensor
    sizes: Tensor
    starts: Tensor | None = None
    encoded: Tensor | None = None


class ImageReader(ABC):
    """What a worker needs to make batches; picklable, for machines on which processes are not forked."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """An image, in the form that `gather` takes.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    @abstractmethod
    def gather(self, images: list[Any]) -> Gathered:
        """The images of a batch, in order."""


class FileReader(ImageReader):
    """Decodes files."""

    def __init__(self, source: ImageSource):
        self.source = source

    def read(self, index: int) -> Tensor:
        """The decoded image, (3, H, W) uint8."""
        return read_image(self.source.path(index))

    def gather(self, images: list[Tensor]) -> Gathered:
        """All pixels in one buffer."""
        return Gathered(*pack_images(images))


class PackReader(ImageReader):
    """Copies decoded images from a pack."""

    def __init__(self, source: ImageSource, pack: ImagePack):
        self.source, self.pack = source, pack

    def read(self, index: int) -> int:
        """The image's number, if it has pixels."""
        _refuse_unreadable(self.source, self.pack.reasons, index)
        return index

    def gather(self, images: list[int]) -> Gathered:
        """All pixels in one buffer."""
        self.pack.prefetch(self.pack.extent(index) for index in images)
        parts = [self.pack.image(index) for index in images]
        pixels = shared_buffer(sum(map(len, parts)))
        np.concatenate(parts, out=pixels.numpy())
        return Gathered(pixels, torch.from_numpy(self.pack.sizes[images]))


class PlaceReader(ImageReader):
    """Says only where the images of a batch are in pixels that the main process has.

    Args:
        source: names the unreadable ones.
        starts: (N,) int64, where each image begins.
        sizes: (N, 2) int64, height and width.
        reasons: number of an unreadable image -> what is wrong with it.
    """

    def __init__(self, source: ImageSource, starts: np.ndarray, sizes: np.ndarray, reasons: dict[int, str]):
        self.source, self.starts, self.sizes, self.reasons = source, starts, sizes, reasons

    def read(self, index: int) -> int:
        """The image's number, if it has pixels."""
        _refuse_unreadable(self.source, self.reasons, index)
        return index

    def gather(self, images: list[int]) -> Gathered:
        """No pixels, but their places."""
        nothing = torch.empty(0, dtype=torch.uint8)
        return Gathered(nothing, torch.from_numpy(self.sizes[images]), torch.from_numpy(self.starts[images]))


def _refuse_unreadable(source: ImageSource, reasons: dict[int, str], index: int) -> None:
    reason = reasons.get(index)
    if reason is not None:
        raise UnreadableImage(str(source.path(index)), reason)
