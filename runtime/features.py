"""Frozen, average-pooled features of images, with the usual evaluation crop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    mean, std = _per_channel(IMAGENET_MEAN, images.device), _per_channel(IMAGENET_STD, images.device)
    return (images.float() / 255 - mean) / std


def network_output(network: nn.Module, images: Tensor, precision: str = "fp32") -> Any:
    """What a network returns for uint8 images (N, 3, H, W) on its device: normalised, channels last, ``bf16`` by
    autocast."""
    views = normalise(images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(views)


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1), written on the device: a copy from the host would wait for a GPU."""
    filled = torch.empty(len(values), 1, 1, device=device)
    for channel, value in zip(filled, values):
        channel.fill_(value)
    return filled


def pooled_features(backbone: nn.Module, crops: Tensor, precision: str = "fp32") -> Tensor:
    """uint8 crops (N, 3, H, W) on the backbone's device -> (N, C) float32."""
    return network_output(backbone, crops, precision).float()


def l2_normalise(features: Tensor) -> Tensor:
    """(N, C) divided by their norms, which have 1e-5 added as in the thesis' SVM protocol."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-5)


class _Crops(Dataset):
    def __init__(self, images: Sequence[Path] | Sequence[Tensor], resize: int, crop: int):
        self.images, self.resize, self.crop = images, resize, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, bool, str]:
        # Errors travel as text: a worker process would wrap an exception in its traceback.
        try:
            item = self.images[index]
            image = item if isinstance(item, Tensor) else read_image(item)
            return evaluation_crop(image, self.resize, self.crop), True, ""
        except UserError as error:
            return torch.zeros(3, self.crop, self.crop, dtype=torch.uint8), False, str(error)


@torch.no_grad()
def image_features(
    backbone: nn.Module,
    paths: Sequence[Path] | Sequence[Tensor],
    *,
    resize: int = 256,
    crop: int = 224,
    device: torch.device,
    precision: str = "fp32",
    l2: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """L2-normalised pooled features of images, in evaluation mode.

    Args:
        backbone: (N, 3, H, W) -> (N, C), on ``device``; its training mode is put back afterwards.
        paths: image files, or a sequence that decodes its own: items are uint8 (3, H, W).
        resize: shorter side, pixels.
        crop: side of the central crop, pixels.
        device: where the backbone is.
        precision: ``fp32`` or ``bf16`` (autocast) for the backbone's arithmetic.
        l2: normalise; False gives the pooled features as they are.
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
            pooled = pooled_features(backbone, images.to(device), precision)
            features.append((l2_normalise(pooled) if l2 else pooled).cpu()[readable])
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
