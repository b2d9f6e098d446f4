"""Crop and antialiased resize, with the resampling of PIL's bilinear filter, in two backends with one meaning.

`resize_crop` takes one crop on the CPU; `resize_crops` takes all crops of ragged images, on any device.
Both crop before they resize (no pixel outside the box has influence), shrink with a triangle as wide as the scale, work
across and then down, and round to 8 bits after each pass, as PIL does.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .staging import to_device

# Elements of a padded batch of images that are resized at a time; bounds the memory to about 1 GB.
CHUNK_ELEMENTS = 1 << 26


def resize_crop(image: Tensor, box, size: int, flip: bool) -> Tensor:
    """One crop of one image on the CPU, with torch's 8-bit resampling.

    Args:
        image: (3, H, W) uint8; quickest when its memory is row-major (H, W, 3).
        box: top, left, height, width.
        size: side of the result in pixels.
        flip: mirror it horizontally.

    Returns:
        (1, 3, size, size) float32 whole numbers 0..255, contiguous.
    """
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    resized = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
    if flip:
        resized = resized.flip(-1)
    return resized.to(torch.float32, memory_format=torch.contiguous_format)


def resize_crops(
    images: list[Tensor],
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    dtype: torch.dtype,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """All crops of a batch of ragged images, by two products with interpolation matrices per chunk of padded images.

    Args:
        images: B tensors (3, H_i, W_i) uint8 on one device.
        boxes: (B, V, 4) top, left, height, width.
        flips: (B, V) bool.
        size: side of the results in pixels.
        dtype: of the products: float16 is quick on a GPU and holds 0..255 exactly; float32 elsewhere.
        chunk_elements: bound on the padded images that are held at a time.

    Returns:
        (B * V, 3, size, size) float32 whole numbers 0..255, contiguous.
    """
    count, views = flips.shape
    device = images[0].device
    shapes = np.array([image.shape[1:] for image in images])
    chunks = _chunks(shapes, chunk_elements)
    order = np.concatenate(chunks)
    staged = to_device(
        [torch.from_numpy(boxes[order]), torch.from_numpy(flips[order]), torch.from_numpy(order)], device
    )
    boxes, flips, order = staged
    out = torch.empty((count, views, 3, size, size), device=device)
    start = 0
    for chunk in chunks:
        rows = slice(start, start + len(chunk))
        pixels = _pad([images[i] for i in chunk], *shapes[chunk].max(axis=0).tolist())
        resized = _resize_padded(pixels, boxes[rows], flips[rows], size, dtype)
        out.index_copy_(0, order[rows], resized)
        start += len(chunk)
    return out.view(count * views, 3, size, size)


def interpolation_matrix(starts: Tensor, lengths: Tensor, flips: Tensor | None, total: int, size: int) -> Tensor:
    """Weights that resize the pixels start..start+length of a line to `size` pixels with PIL's triangle filter.

    Args:
        starts: (n,) first pixel of each interval.
        lengths: (n,) pixels in it.
        flips: (n,) bool: reverse the result; None for never.
        total: pixels of the line.
        size: pixels of the result.

    Returns:
        (n, size, total) float32; rows sum to one and are zero outside the interval.
    """
    lengths = lengths.to(torch.float32)[:, None]
    scale = lengths / size
    support = scale.clamp(min=1)
    index = torch.arange(size, device=starts.device, dtype=torch.float32)[None]
    if flips is not None:
        index = torch.where(flips[:, None], size - 1 - index, index)
    centre = (index + 0.5) * scale
    low = (centre - support + 0.5).floor().clamp(min=0)
    high = torch.minimum((centre + support + 0.5).floor(), lengths)
    pixel = (torch.arange(total, device=starts.device)[None] - starts[:, None]).to(torch.float32)[:, None]
    weights = (1 - (pixel + 0.5 - centre[..., None]).abs_() / support[..., None]).clamp_(min=0)
    weights *= (pixel >= low[..., None]) & (pixel < high[..., None])
    return weights / weights.sum(-1, keepdim=True)


def _resize_padded(pixels: Tensor, boxes: Tensor, flips: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(n, 3, H, W) uint8 padded images and (n, V, 4) boxes -> (n, V, 3, size, size) float32."""
    count, views = flips.shape
    height, width = pixels.shape[-2:]
    top, left, box_height, box_width = boxes.reshape(-1, 4).unbind(1)
    across = interpolation_matrix(left, box_width, flips.reshape(-1), width, size).to(dtype)
    down = interpolation_matrix(top, box_height, None, height, size).to(dtype)
    lines = pixels.to(dtype).view(count, 3 * height, width)
    # (n, V * size, W) x (n, W, 3 * H): a view's columns, for every row of the image.
    columns = torch.bmm(across.view(count, views * size, width), lines.transpose(1, 2)).add_(0.5).floor_()
    columns = columns.view(count * views, size * 3, height)
    resized = torch.bmm(columns, down.transpose(1, 2)).add_(0.5).floor_()
    return resized.view(count, views, size, 3, size).permute(0, 1, 3, 4, 2).to(torch.float32)


def _pad(images: list[Tensor], height: int, width: int) -> Tensor:
    # What lies beyond an image is never read with a weight other than zero, so it need not be set.
    padded = images[0].new_empty((len(images), 3, height, width))
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
    return padded


def _chunks(shapes: np.ndarray, elements: int) -> list[np.ndarray]:
    """Split images into runs whose padded size stays within bounds (at least one image each), like sizes together."""
    order = np.lexsort((shapes.prod(axis=1), shapes[:, 0] > shapes[:, 1]))
    chunks, start = [], 0
    for end in range(1, len(order) + 1):
        if end < len(order):
            members = shapes[order[start : end + 1]]
            if 3 * len(members) * members.max(axis=0).prod() <= elements:
                continue
        chunks.append(order[start:end])
        start = end
    return chunks
