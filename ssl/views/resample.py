"""Crop and antialiased resize, with the resampling of PIL's bilinear filter, in two backends with one meaning.

`resize_crop` takes one crop on the CPU; `resize_crops` takes all crops of ragged images, on any device.
Both crop before they resize (no pixel outside the box has influence), shrink with a triangle as wide as the scale, work
across and then down, and round to 8 bits after each pass, as PIL does.
"""

from collections.abc import Sequence

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
    groups: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> list[Tensor]:
    """All crops of a batch of ragged images, by two products with interpolation matrices per chunk of padded images.

    Args:
        images: B tensors (3, H_i, W_i) uint8 on one device, quickest with row-major (H, W, 3) memory.
        boxes: (B, V, 4) top, left, height, width.
        flips: (B, V) bool.
        groups: how many of the V views of an image, in order, get which side in pixels.
        dtype: of the products: float16 is quick on a GPU and holds 0..255 exactly; float32 elsewhere.
        chunk_elements: bound on the padded images that are held at a time.

    Returns:
        For each group (B * count, 3, size, size) float32 whole numbers 0..255, contiguous.
    """
    device = images[0].device
    shapes = np.array([image.shape[1:] for image in images])
    chunks = _chunks(shapes, chunk_elements)
    order = np.concatenate(chunks)
    host = (boxes[order], flips[order], order, shapes[order])
    boxes, flips, order, sizes = to_device([torch.from_numpy(array) for array in host], device)
    results = [torch.empty((len(images), count, 3, size, size), device=device) for count, size in groups]
    start = 0
    for chunk in chunks:
        rows = slice(start, start + len(chunk))
        pixels = _pad([images[i] for i in chunk], sizes[rows], *shapes[chunk].max(axis=0).tolist(), dtype)
        first = 0
        for result in results:
            views = slice(first, first + result.shape[1])
            resized = _resize_padded(pixels, boxes[rows, views], flips[rows, views], result.shape[-1])
            result.index_copy_(0, order[rows], resized)
            first = views.stop
        start = rows.stop
    return [result.flatten(0, 1) for result in results]


def interpolation_matrix(
    starts: Tensor, lengths: Tensor, flips: Tensor | None, total: int, size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights that resize the pixels start..start+length of a line to `size` pixels with PIL's triangle filter.

    Args:
        starts: (n,) first pixel of each interval.
        lengths: (n,) pixels in it.
        flips: (n,) bool: reverse the result; None for never.
        total: pixels of the line.
        size: pixels of the result.
        dtype: of the weights. Positions are float32; in float16 a weight is off by up to a thousandth.

    Returns:
        (n, size, total); rows sum to one and are zero outside the interval.
    """
    lengths = lengths.to(torch.float32)[:, None]
    scale = lengths / size
    support = scale.clamp(min=1)
    index = torch.arange(size, device=starts.device, dtype=torch.float32)[None]
    if flips is not None:
        index = torch.where(flips[:, None], size - 1 - index, index)
    centre = (index + 0.5) * scale / support
    pixel = torch.arange(total, device=starts.device)[None] - starts[:, None]
    inside = (pixel >= 0) & (pixel < lengths)
    # Infinitely far away is how a pixel outside the interval gets the weight zero.
    place = torch.where(inside, pixel + 0.5, torch.inf) / support
    # In the final type from the start: these are the largest arrays of the whole rendering.
    distance = torch.empty((len(starts), size, total), dtype=dtype, device=starts.device)
    weights = 1 - torch.sub(place[:, None], centre[..., None], out=distance).abs_().clamp_(max=1)
    return weights.div_(weights.sum(-1, keepdim=True, dtype=torch.float32))


def _resize_padded(pixels: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """(n, 3, H, W) padded images in the type of the products and (n, V, 4) boxes -> (n, V, 3, size, size) float32."""
    count, views = flips.shape
    height, width = pixels.shape[-2:]
    top, left, box_height, box_width = boxes.reshape(-1, 4).unbind(1)
    across = interpolation_matrix(left, box_width, flips.reshape(-1), width, size, pixels.dtype)
    down = interpolation_matrix(top, box_height, None, height, size, pixels.dtype)
    # (n, V * size, W) x (n, W, 3 * H): a view's columns, for every row of the image.
    lines = pixels.view(count, 3 * height, width).transpose(1, 2)
    columns = torch.bmm(across.view(count, views * size, width), lines).add_(0.5).floor_()
    columns = columns.view(count * views, size * 3, height)
    resized = torch.bmm(columns, down.transpose(1, 2)).add_(0.5).floor_()
    return resized.view(count, views, size, 3, size).permute(0, 1, 3, 4, 2).to(torch.float32)


def _pad(images: list[Tensor], sizes: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Ragged images as one (n, 3, height, width) tensor, in launches whose number does not depend on n.

    Args:
        images: n tensors (3, H_i, W_i) uint8.
        sizes: (n, 2) the same heights and widths, on the device.
        height: the largest.
        width: the largest.
        dtype: of the result.
    """
    # One after another in memory, every row of every image is a window of the same length, the padding being whatever
    # comes next: it is never read with a weight other than zero. The last rows need something to come next, too.
    window = 3 * width
    flat = torch.cat([*(image.permute(1, 2, 0).reshape(-1) for image in images), images[0].new_empty(window)])
    heights, strides = sizes[:, :1], 3 * sizes[:, 1:]
    firsts = (heights * strides).cumsum(0) - heights * strides
    rows = torch.arange(height, device=flat.device).minimum(heights - 1)
    windows = flat.as_strided((flat.numel() - window + 1, window), (1, 1))
    padded = windows.index_select(0, (firsts + rows * strides).view(-1))
    padded = padded.view(len(images), height, width, 3).permute(0, 3, 1, 2)
    return padded.to(dtype, memory_format=torch.contiguous_format)


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
