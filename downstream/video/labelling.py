"""A video's label maps from a frozen backbone: decode, features, propagation, full resolution."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyscene.downstream.backbones import FeatureMaps
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import network_output
from polyscene.runtime.images import read_image

from .propagation import hard_labels, propagate_video, soft_labels
from .sequences import Video


def label_video(
    network: FeatureMaps,
    video: Video,
    first_mask: np.ndarray,
    labels: tuple[int, ...],
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 4,
    workers: int = 0,
    context: int = 20,
    radius: float = 12,
    top_k: int = 10,
    temperature: float = 0.05,
    pad: bool = True,
) -> Iterator[np.ndarray]:
    """Label maps of all frames, the given one first.

    Args:
        network: backbone whose only map is used, on ``device``.
        video: frames in native resolution.
        first_mask: (H, W) uint8 label map of the first frame.
        labels: the objects in it.
        device: where to compute.
        precision: ``fp32`` or ``bf16``, of the backbone; similarities are always computed in fp32.
        batch_size: frames per forward pass.
        workers: threads that decode ahead; 0: decode when needed.
        context: see :func:`propagate_video`, as for the remaining ones.
        radius: in cells.
        top_k: most similar cells that vote.
        temperature: of the softmax.
        pad: fill the context with copies of the first frame at the beginning.

    Yields:
        (H, W) uint8 label maps.

    Raises:
        UserError: a frame cannot be decoded, or has another size than the mask.
    """
    size = first_mask.shape
    frames = read_frames(video, size, batch_size, workers)
    features = frame_features(network, frames, device, precision)
    first = next(features)
    start = soft_labels(torch.from_numpy(first_mask).to(device), labels, first.shape[:2])
    yield first_mask
    soft_maps = propagate_video(
        _chain(first, features),
        start,
        context=context,
        radius=radius,
        top_k=top_k,
        temperature=temperature,
        pad=pad,
    )
    for soft in soft_maps:
        yield hard_labels(soft, labels, size).cpu().numpy()


def read_frames(video: Video, size: tuple[int, int], batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches (N, 3, H, W) uint8 of the frames, in order; the next batch is decoded while one is used.

    Raises:
        UserError: a frame cannot be decoded, or has another size.
    """
    batches = [video.frames[i : i + batch_size] for i in range(0, len(video.frames), batch_size)]

    def decode(path) -> Tensor:
        image = read_image(path)
        if image.shape[1:] != size:
            found = f"{image.shape[2]} x {image.shape[1]}"
            raise UserError(f"'{path}' has {found} pixels, the first frame's mask {size[1]} x {size[0]}")
        return image

    if workers == 0:
        for batch in batches:
            yield torch.stack([decode(path) for path in batch])
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(decode, path) for path in batches[0]]
        for following in [*batches[1:], ()]:
            images = torch.stack([future.result() for future in ahead])
            ahead = [pool.submit(decode, path) for path in following]
            yield images


def frame_features(
    network: FeatureMaps, batches: Iterator[Tensor], device: torch.device, precision: str
) -> Iterator[Tensor]:
    """L2-normalised features (h, w, C) float32 of every frame of the (N, 3, H, W) uint8 batches."""
    for images in batches:
        yield from _features(network, images.to(device), precision)


@torch.no_grad()
def _features(network: FeatureMaps, images: Tensor, precision: str) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, h, w, C)."""
    (maps,) = network_output(network, images, precision)
    return F.normalize(maps.float().permute(0, 2, 3, 1), dim=-1).contiguous()


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest
