"""Frozen, average-pooled features of images, with the usual evaluation crop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as T

from .errors import UserError
from .images import read_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def evaluation_crop(image: Tensor, resize: int, crop: int) -> Tensor:
    """Antialiased ``Resize(resize)`` of the shorter side, then ``CenterCrop(crop)``: (3, crop, crop) uint8."""
    return T.center_crop(T.resize(image, [resize], antialias=True), [crop, crop])


def normalise(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 with ImageNet mean and standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


class _Crops(Dataset):
    def __init__(self, paths: Sequence[Path], resize: int, crop: int):
        self.paths, self.resize, self.crop = paths, resize, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, bool, str]:
        # Errors travel as text: a worker process would wrap an exception in its traceback.
        try:
            return evaluation_crop(read_image(self.paths[index]), self.resize, self.crop), True, ""
        except UserError as error:
            return torch.zeros(3, self.crop, self.crop, dtype=torch.uint8), False, str(error)


@torch.no_grad()
def image_features(
    backbone: nn.Module,
    paths: Sequence[Path],
    *,
    resize: int = 256,
    crop: int = 224,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """L2-normalised pooled features of image files, in evaluation mode.

    Args:
        backbone: (N, 3, H, W) -> (N, C), on ``device``; its training mode is put back afterwards.
        paths: image files.
        resize: shorter side, pixels.
        crop: side of the central crop, pixels.
        device: where the backbone is.
        batch_size: images per forward pass.
        workers: processes that decode.
        skip_unreadable: leave unreadable images out instead of raising.
        progress: called with the number of images done.

    Returns:
        Features (M, C) float32 on the CPU, and the positions (M,) in ``paths`` they belong to.

    Raises:
        UserError: an image cannot be decoded.
    """
    was_training = backbone.training
    backbone.eval()
    loader = DataLoader(_Crops(paths, resize, crop), batch_size=batch_size, num_workers=workers)
    features, positions, done = [], [], 0
    try:
        for images, readable, reasons in loader:
            if not skip_unreadable and not readable.all():
                raise UserError(next(r for r in reasons if r))
            pooled = backbone(normalise(images.to(device)).contiguous(memory_format=torch.channels_last))
            # The norm has a floor of 1e-5 as in the thesis' SVM protocol.
            features.append((pooled.float() / (pooled.float().norm(dim=1, keepdim=True) + 1e-5)).cpu()[readable])
            positions.append(done + readable.nonzero().flatten())
            done += images.shape[0]
            if progress is not None:
                progress(done)
    finally:
        backbone.train(was_training)
    if not features:
        raise UserError("no images to extract features from")
    return torch.cat(features), torch.cat(positions)


def resize_for(crop: int) -> int:
    """The shorter side that goes with a crop, in the usual proportion 256 : 224."""
    return math.ceil(crop * 256 / 224)
