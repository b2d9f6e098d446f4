"""The views of the published recipe as it makes them: PIL images and torchvision's transforms, in the data workers."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as F

from polyscene.runtime.features import IMAGENET_MEAN, IMAGENET_STD
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.spec import ANCHOR, ViewSpec

TRIES = 10
Box = tuple[int, int, int, int]  # top, left, height, width


def nothing(stage: str) -> None:
    """Takes no notice of the end of a stage."""


class PublishedViews:
    """Makes the views of one image.

    Constrained multi-crop (a small crop overlaps the anchor by a tenth of its area), jitter, grey, blur and flip; in
    the mix a fair coin per query chooses flip and AutoAugment in their place.

    Args:
        spec: which views; ``constraint`` overlap, ``augmentation`` standard or mix.
    """

    def __init__(self, spec: ViewSpec):
        self.spec = spec
        standard = T.Compose(
            [
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([_Blur()], p=0.5),
                T.RandomHorizontalFlip(),
            ]
        )
        automatic = T.Compose([T.RandomHorizontalFlip(), T.AutoAugment(T.AutoAugmentPolicy.IMAGENET)])
        mix = T.RandomChoice([automatic, standard]) if spec.augmentation == "mix" else standard
        self.colour = [standard if view == ANCHOR else mix for view in range(spec.num_views)]
        self.to_tensor = T.Compose([T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def __call__(self, path: str | Path, lap: Callable[[str], None] = nothing) -> list[Tensor]:
        """Views (3, size, size) float32 of an image file.

        Args:
            path: the file.
            lap: called with the name of each stage when it is done.
        """
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        lap("read and decode")
        crops = self._crops(image)
        lap("crop and resize")
        coloured = [change(crop) for change, crop in zip(self.colour, crops, strict=True)]
        lap("colour")
        views = [self.to_tensor(view) for view in coloured]
        lap("normalise and store")
        return views

    def _crops(self, image: Image.Image) -> list[Image.Image]:
        large, small = self.spec.large, self.spec.small
        boxes = [_box(image.size, large) for _ in range(large.count)]
        sides = [large.size] * large.count
        if small is not None:
            boxes += [self._constrained_box(image.size, small, boxes[ANCHOR]) for _ in range(small.count)]
            sides += [small.size] * small.count
        return [F.resized_crop(image, *box, [side, side]) for box, side in zip(boxes, sides, strict=True)]

    def _constrained_box(self, size: tuple[int, int], group: CropGroup, anchor: Box) -> Box:
        for _ in range(TRIES):
            box, target = _one_try(size, group)
            if box is not None and _intersection(box, anchor) >= self.spec.min_overlap * target:
                return box
        return _box(size, group)


class PublishedDataset(Dataset):
    """Views of image files, for torch's DataLoader.

    An item is the list of an image's views and the processor time of the process so far, in seconds.

    Args:
        paths: the files; item i is that of ``paths[i % len(paths)]``.
        length: of the data set.
        spec: which views.
    """

    def __init__(self, paths: Sequence[Path], length: int, spec: ViewSpec):
        self.paths, self.length, self.make = paths, length, PublishedViews(spec)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[list[Tensor], float]:
        started = time.process_time()
        return self.make(self.paths[index % len(self.paths)]), started


def seed_everything(seed: int) -> None:
    """Seed the three generators that the transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (torchvision's transforms draw from it)
    torch.manual_seed(seed)


class _Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def _one_try(size: tuple[int, int], group: CropGroup) -> tuple[Box | None, float]:
    """A box, if it fits into the image, and the area it was meant to have."""
    width, height = size
    target = random.uniform(*group.scale) * width * height
    aspect = math.exp(random.uniform(math.log(group.ratio[0]), math.log(group.ratio[1])))
    w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
    if not (0 < w <= width and 0 < h <= height):
        return None, target
    return (random.randint(0, height - h), random.randint(0, width - w), h, w), target


def _box(size: tuple[int, int], group: CropGroup) -> Box:
    for _ in range(TRIES):
        box, _ = _one_try(size, group)
        if box is not None:
            return box
    width, height = size
    w, h = min(width, round(height * group.ratio[1])), min(height, round(width / group.ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _intersection(a: Box, b: Box) -> int:
    rows = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    columns = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, rows) * max(0, columns)
