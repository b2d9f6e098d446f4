"""Images of a data set in a fixed order, as files or as objects, with a fingerprint that notices any change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image


class ImageFiles(Sequence):
    """Paths of image files under one folder.

    Args:
        root: the folder.
        names: paths relative to it.
    """

    def __init__(self, root: Path | str, names: Sequence[str]):
        self.root = Path(root)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / self.names[index]

    def fingerprint(self) -> str:
        """Hash of all names relative to the root, sizes and modification times.

        Raises:
            UserError: a file does not exist.
        """
        digest = hashlib.blake2b(digest_size=12)
        for name in self.names:
            path = os.path.join(self.root, name)
            try:
                status = os.stat(path)
            except OSError as error:
                raise UserError(f"image '{path}' is listed but cannot be read: {error.strerror}") from error
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class ImageObjects(Sequence):
    """Images of a data set that keeps no image files, such as torchvision's CIFAR10; items are uint8 (3, H, W).

    Args:
        dataset: items are (image, label), the image something that NumPy reads as (H, W, 3) or (H, W) uint8.
        identity: tells this data set and its version from any other.
    """

    def __init__(self, dataset: Dataset, identity: str):
        self.dataset = dataset
        self.identity = identity

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        picture = self.dataset[index][0]
        pixels = np.array(picture.convert("RGB") if hasattr(picture, "convert") else picture, dtype=np.uint8)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def fingerprint(self) -> str:
        """Hash of the identity and the number of images."""
        return hashlib.blake2b(f"{self.identity}\0{len(self)}".encode(), digest_size=12).hexdigest()


class LabelledPixels(Dataset):
    """Decoded images with their class numbers: item i is (uint8 (3, H, W), int).

    Args:
        images: files or objects.
        labels: (N,) int64.
    """

    def __init__(self, images: ImageFiles | ImageObjects, labels: Tensor):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.images[index]
        return item if isinstance(item, Tensor) else read_image(item), int(self.labels[index])
