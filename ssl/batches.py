"""A batch of whole images of different sizes, and how it travels between processes and devices."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyscene.runtime.shared_blocks import lent
from polyscene.runtime.transport import by_value, shared_buffer


@dataclass
class ImageBatch:
    """The raw images of one step of one process, and what was drawn for their views.

    Attributes:
        pixels: (sum of H*W*3,) uint8, the images one after another, each (H, W, 3) RGB. One buffer rather than one per
            image: every tensor that leaves a worker costs an open file, and every copy to a GPU a launch.
        sizes: (B, 2) int64, height and width; stays on the CPU.
        indices: (B,) int64, the images that were asked for; they seed the views even of a replacement. On the CPU.
        labels: (B,) int64, classes of the images shown, or None.
        shown: (B,) int64, the images in the batch: ``indices``, replacements aside. On the CPU.
        unreadable: ``(index, "name<TAB>reason")`` of images that could not be decoded.
        step: which step of the run.
        epoch: which epoch, from 0.
        params: what ``sample_views`` returned.
        starts: (B,) int64, where each image begins in ``pixels``, which may hold others besides; None: one follows
            another. On the CPU.
        encoded: (B,) int64, bytes of the JPEG file that stands in ``pixels`` in place of an image, or 0; None: none.
    """

    pixels: Tensor
    sizes: Tensor
    indices: Tensor
    labels: Tensor | None
    shown: Tensor
    unreadable: list[tuple[int, str]]
    step: int
    epoch: int
    params: Any
    starts: Tensor | None = None
    encoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def images(self) -> list[Tensor]:
        """The images as B views (3, H, W) of ``pixels``, stored channels last; nothing is copied."""
        shapes = self.sizes.tolist()
        if self.starts is not None:
            return [
                self.pixels.as_strided((3, height, width), (1, 3 * width, 3), start)
                for (height, width), start in zip(shapes, self.starts.tolist())
            ]
        flat = self.pixels.split([height * width * 3 for height, width in shapes])
        return [part.view(height, width, 3).permute(2, 0, 1) for part, (height, width) in zip(flat, shapes)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """A batch with pixels, labels and parameters on a device; sizes and indices stay, the host needs them."""
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=non_blocking),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=non_blocking),
            params=self.params.to(device, non_blocking=non_blocking) if hasattr(self.params, "to") else self.params,
        )

    def pin_memory(self) -> ImageBatch:
        """A batch whose pixels, labels and parameters are in page-locked memory; called by torch's DataLoader."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            labels=None if self.labels is None else self.labels.pin_memory(),
            params=self.params.pin_memory() if hasattr(self.params, "pin_memory") else self.params,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the pixels go through shared memory: dozens of small shared tensors a batch would exhaust the limit on
        # open files.
        fields = {name: value for name, value in vars(self).items() if name != "pixels"}
        return _rebuild, (self.pixels if self.pixels.is_shared() else self.pixels.numpy(), by_value(fields))


def pack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put (3, H, W) uint8 images of any sizes into one buffer; in a worker process, a shared one if there is room.

    Returns:
        (sum of H*W*3,) uint8 with each image's (H, W, 3) pixels, and (B, 2) int64 heights and widths.
    """
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).reshape(-1, 2)
    flat = [image.permute(1, 2, 0).reshape(-1) for image in images]
    pixels = shared_buffer(sum(part.numel() for part in flat))
    return torch.cat(flat, out=pixels), sizes


def _rebuild(pixels: Any, rest: bytes) -> ImageBatch:
    pixels = lent(pixels) if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
    return ImageBatch(pixels=pixels, **pickle.loads(rest))  # bytes that `__reduce__` wrote in a worker process
