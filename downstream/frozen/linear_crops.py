"""Crops of a linear probe's training images: random ones to learn from, central ones to judge by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as T

from polyscene.runtime.errors import UserError
from polyscene.runtime.features import evaluation_crop, resize_for

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def augmented_crop(image: Tensor, crop: int, seed: int, epoch: int, index: int) -> Tensor:
    """Random resized crop (area 0.08 to 1) and flip of a uint8 image, decided by (seed, epoch, index) alone.

    Args:
        image: (3, H, W) uint8.
        crop: side, pixels.
        seed: any integer.
        epoch: number of the pass, >= 0.
        index: the image's number in the data set, >= 0.

    Returns:
        (3, crop, crop) uint8.
    """
    state = np.random.SeedSequence([seed % 2**64, epoch, index]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global state
        torch.manual_seed(int(state[0]))
        box = RandomResizedCrop.get_params(image, SCALE, RATIO)
        flip = bool(torch.rand(()) < 0.5)
    view = T.resized_crop(image, *box, [crop, crop], antialias=True)
    return T.horizontal_flip(view) if flip else view


class EpochBatches:
    """Lists of (epoch, index): all epochs in one sequence, so that workers never wait between two.

    Attributes:
        steps: batches an epoch.
    """

    def __init__(self, count: int, batch_size: int, epochs: int, seed: int):
        self.count, self.batch_size, self.epochs, self.seed = count, batch_size, epochs, seed
        self.steps = -(-count // batch_size)

    def __len__(self) -> int:
        return self.steps * self.epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed % 2**64, epoch]).permutation(self.count)
            for start in range(0, self.count, self.batch_size):
                yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class AugmentedCrops(Dataset):
    """Item (epoch, index) is a crop (3, crop, crop), its class, the index, and why the image is unreadable or ""."""

    def __init__(self, dataset: Dataset, crop: int, seed: int):
        self.dataset, self.crop, self.seed = dataset, crop, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int, str]:
        epoch, index = key
        # Errors travel as text: a worker process would wrap an exception in its traceback.
        try:
            image, label = self.dataset[index]
        except UserError as error:
            return torch.zeros(3, self.crop, self.crop, dtype=torch.uint8), 0, index, str(error)
        return augmented_crop(image, self.crop, self.seed, epoch, index), int(label), index, ""


class EvaluationCrops(Dataset):
    """Central crops of some images: item i is (3, crop, crop) uint8 of image ``indices[i]``, and its class."""

    def __init__(self, dataset: Dataset, indices: np.ndarray, crop: int):
        self.dataset, self.indices, self.crop = dataset, indices, crop

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self.dataset[int(self.indices[position])]
        return evaluation_crop(image, resize_for(self.crop), self.crop), int(label)
