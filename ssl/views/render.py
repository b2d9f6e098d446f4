"""Boxes, parameters and uint8 images in; normalised views out, on the device the images are on."""

from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.features import IMAGENET_MEAN, IMAGENET_STD

from . import colour
from .photometric import NOTHING, programs, schedule
from .resample import resize_crop, resize_crops
from .spec import ViewParameters, ViewSpec
from .staging import to_device


def render_views(
    batch_images: list[Tensor],
    params: ViewParameters,
    spec: ViewSpec,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> list[Tensor]:
    """Render the views of a batch.

    Crop and antialiased resize to the 8-bit grid, flip, the operations of the view's branch, normalisation by the mean
    and standard deviation of ImageNet. Nothing in here waits for the device.

    The `view` backend (default on a CPU) makes one view after another: its pixels stay in the cache, and a view does
    not depend on the rest of the batch to the last bit. The `batch` backend (default elsewhere) runs each operation on
    all views that need it. They agree up to rounding: resized pixels differ by one of 255
    levels on some tenths of a percent (in half precision, on a GPU: some percent, a few pixels by two), which a
    threshold (solarize, posterize) or a histogram may magnify.

    Args:
        batch_images: B tensors (3, H_i, W_i) uint8 RGB on `device`, quickest with row-major (H, W, 3) memory.
        params: of the same B images, on the CPU.
        spec: the one the parameters were drawn with.
        device: where the views are wanted.
        dtype: of the views.
        backend: `view`, `batch`, or None for the device's default.

    Returns:
        [(B, n_large, 3, S, S), (B, n_small, 3, s, s)], the second only if there are small crops. Memory is ordered
        (B, n, S, S, 3), so that `views.flatten(0, 1)` is channels-last without a copy.

    Raises:
        ValueError: images and parameters differ in number, or images are not uint8 RGB on `device`.
    """
    device = torch.device(device)
    _check(batch_images, params, spec, device)
    views = []
    for group in spec.groups:
        memory = torch.empty((len(batch_images), group.count, group.size, group.size, 3), dtype=dtype, device=device)
        views.append(memory.permute(0, 1, 4, 2, 3))
    if not batch_images:
        return views
    operations, amounts = programs(params)
    boxes, flips = params.boxes.numpy(), params.flip.numpy()
    backend = backend or ("view" if device.type == "cpu" else "batch")
    render = _render_one_by_one if backend == "view" else _render_batch
    render(batch_images, boxes, flips, operations, amounts, views)
    return views


@contextmanager
def _one_thread():
    """Run torch's CPU operations on the calling thread alone.

    A view is so small that sharing each of its ~50 operations out to threads costs more than it gains: when other
    processes (data workers) keep the cores busy, rendering took five times as long with two threads as with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def _render_one_by_one(images, boxes, flips, operations, amounts, groups: list[Tensor]) -> None:
    scale, offset = _normalisation(groups[0].device)
    boxes = boxes.tolist()
    for i, image in enumerate(images):
        views = [view for group in groups for view in group[i]]
        for v, view in enumerate(views):
            pixels = resize_crop(image, boxes[i][v], view.shape[-1], flips[i, v])
            for code, amount in zip(operations[i, v], amounts[i, v]):
                if code != NOTHING:
                    name = colour.OPERATIONS[code]
                    pixels = colour.apply(name, pixels, torch.from_numpy(amount[None]), abs(float(amount)))
            view.copy_(pixels[0].mul(scale).add_(offset))


def _render_batch(images, boxes, flips, operations, amounts, groups: list[Tensor]) -> None:
    device = groups[0].device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    shapes = [(group.shape[1], group.shape[-1]) for group in groups]
    scale, offset = _normalisation(device)
    first = 0
    for group, pixels in zip(groups, resize_crops(images, boxes, flips, shapes, dtype), strict=True):
        span = slice(first, first + group.shape[1])
        steps = schedule(operations[:, span].reshape(len(pixels), -1), amounts[:, span].reshape(len(pixels), -1))
        host = [torch.from_numpy(array) for step in steps for array in (step.views, step.amounts)]
        staged = to_device(host, device)
        for step, views, step_amounts in zip(steps, staged[0::2], staged[1::2], strict=True):
            chosen, largest = pixels.index_select(0, views), float(np.abs(step.amounts).max())
            pixels.index_copy_(0, views, colour.apply(step.operation, chosen, step_amounts, largest))
        torch.addcmul(offset, pixels.view(group.shape), scale, out=group)
        first = span.stop


def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand (3, 1, 1) that take 0..255 to units of ImageNet's standard deviation about its mean."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    scale, offset = to_device([1 / (255 * std), -mean / std], device)
    return scale.view(3, 1, 1), offset.view(3, 1, 1)


def denormalise(views: Tensor) -> Tensor:
    """Undo the normalisation: (..., 3, H, W) views to uint8 (for pictures)."""
    scale, offset = _normalisation(views.device)
    return ((views.float() - offset) / scale).round().clamp(0, 255).to(torch.uint8)


def _check(images: list[Tensor], params: ViewParameters, spec: ViewSpec, device: torch.device) -> None:
    if len(images) != len(params):
        raise ValueError(f"{len(images)} images but parameters of {len(params)}")
    if params.boxes.shape[1] != spec.num_views:
        raise ValueError(f"parameters of {params.boxes.shape[1]} views, but the specification has {spec.num_views}")
    for i, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.device.type != device.type:
            found = f"{image.dtype} {tuple(image.shape)} on {image.device}"
            raise ValueError(f"image {i}: expected uint8 (3, H, W) on {device}, got {found}")
