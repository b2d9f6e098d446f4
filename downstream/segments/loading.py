"""Decoding of images, label maps and saliency maps, all at one size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as T

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.png import read_numbers

from .data import LabelScheme, Pairs

_HIGHEST = 65535


class Batch(NamedTuple):
    """Decoded images: (N, 3, H, W) uint8; labels (N, H, W) int64 with void = C; salient (N, H, W) bool or None."""

    images: Tensor
    labels: Tensor
    salient: Tensor | None


def read_labels(path: Path, scheme: LabelScheme) -> np.ndarray:
    """A label PNG as class numbers, palette indices not expanded: (H, W) int64, void values become C.

    Raises:
        UserError: not readable; colours instead of numbers; a value that is neither a class nor void.
    """
    values = read_numbers(path).astype(np.int64)
    table = np.full(_HIGHEST + 2, -1)
    table[: scheme.count] = np.arange(scheme.count)
    table[list(scheme.ignore)] = scheme.count
    labels = table[values.clip(max=_HIGHEST + 1)]
    if labels.min() < 0:
        wrong = sorted(set(values[labels < 0].tolist()))
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise UserError(
            f"label map '{path}' holds the value {shown}, but data.classes names {scheme.count} classes "
            f"(0 to {scheme.count - 1}) and data.ignore is {list(scheme.ignore) or 'null'}; extend one of them"
        )
    return labels


def read_salient(path: Path) -> np.ndarray:
    """A saliency PNG thresholded at a half: (H, W) bool.

    Raises:
        UserError: not readable, or colours instead of grey values.
    """
    values = read_numbers(path, "saliency map")
    return values > (127 if values.max() > 1 else 0)  # masks of 0 and 1 are taken as they are


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> ``size`` by taking the pixel under every new pixel's centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64).clip(max=old - 1) for new, old in zip(size, values.shape)
    )
    return values[rows[:, None], columns[None, :]]


def batches(
    pairs: Pairs, scheme: LabelScheme, *, size: tuple[int, int], batch_size: int, workers: int
) -> Iterator[Batch]:
    """All pairs in order, decoded by ``workers`` processes and resized to ``size`` (height, width).

    Images are resized with antialiased bilinear filtering whatever their aspect, label and saliency maps to the
    nearest pixel.

    Raises:
        UserError: an image, label map or saliency map that cannot be used.
    """
    loader = DataLoader(_Decoded(pairs, scheme, size), batch_size=batch_size, num_workers=workers)
    for images, labels, salient, reasons in loader:
        reason = next((r for r in reasons if r), None)
        if reason:
            raise UserError(reason)
        yield Batch(images, labels.long(), salient if pairs.saliency is not None else None)


class _Decoded(Dataset):
    def __init__(self, pairs: Pairs, scheme: LabelScheme, size: tuple[int, int]):
        self.pairs, self.scheme, self.size = pairs, scheme, size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, str]:
        # Errors travel as text: a worker process would wrap an exception in its traceback.
        try:
            return *self._read(index), ""
        except UserError as error:
            void = torch.zeros(self.size, dtype=torch.int16)
            return torch.zeros(3, *self.size, dtype=torch.uint8), void, void.bool(), str(error)

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        pairs = self.pairs
        image = read_image(pairs.images[index])
        labels = read_labels(pairs.labels[index], self.scheme)
        _check_size(labels, image, pairs.labels[index], pairs.images[index])
        salient = np.zeros(self.size, dtype=bool)
        if pairs.saliency is not None:
            full = read_salient(pairs.saliency[index])
            _check_size(full, image, pairs.saliency[index], pairs.images[index])
            salient = resize_nearest(full, self.size)
        resized = T.resize(image, list(self.size), antialias=True)
        # int16 halves what travels between the processes.
        small = resize_nearest(labels, self.size).astype(np.int16)
        return resized, torch.from_numpy(small), torch.from_numpy(salient)


def _check_size(values: np.ndarray, image: Tensor, path: Path, image_path: Path) -> None:
    height, width = image.shape[-2:]
    if values.shape != (height, width):
        raise UserError(
            f"'{path}' has {values.shape[1]} x {values.shape[0]} pixels and its image '{image_path}' "
            f"{width} x {height}; both must have the same size"
        )
