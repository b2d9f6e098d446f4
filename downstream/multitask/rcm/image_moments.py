"""Response moments of image files: the measurement behind Response Initialization, on images the user names.

Protocol of the authors' code: the un-dilated network in evaluation mode, shorter side 256, central 224 x 224.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
from rich.console import Console
from timm.models.resnet import ResNet
from torch import Tensor

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import evaluation_crop, normalise
from polyscene.runtime.images import read_image
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.weights import BackboneWeights, load_backbone
from polyscene.runtime.worker_loader import WorkerLoader

from .moments import Moments, NoImages, response_moments
from .network import adapted_convolutions

RESIZE, CROP = 256, 224

_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
_NAMED = 3  # unreadable images that a warning names


def image_moments(
    weights: BackboneWeights,
    images: Sequence[Path],
    *,
    reparameterize: str = "spatial",
    device: torch.device | None = None,
    workers: int = 0,
    world: World | None = None,
    batch_size: int = 32,
    console: Console | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[str, Moments]:
    """Stream images once through the un-dilated network and sum the moments of its responses.

    Memory depends on the widths of the network and on ``batch_size``, not on the number of images. Up to rounding the
    result does not depend on ``batch_size``, ``workers`` or the number of ranks; every rank takes its share of the
    images and gets the sums over all of them.

    Args:
        weights: of a ResNet with plain blocks.
        images: files, the same list on every rank; see :func:`find_images`.
        reparameterize: ``spatial`` or ``all``: which convolutions are measured, see :func:`.network.rcm_encoder`.
        device: where to compute; None: the world's, or the CPU.
        workers: processes that read and decode; 0: this one.
        world: the processes that share the work.
        batch_size: images per forward pass.
        console: where the progress bar is drawn and unreadable images are reported, by rank 0.
        warn: called by rank 0, instead of the console, with a line about images that cannot be read.

    Returns:
        Name of the convolution -> moments, on the CPU, the same on every rank.

    Raises:
        UserError: no image can be read; not a plain ResNet; responses that are not finite; a worker process died; or
            a number that makes no sense.
        ValueError: an unknown word for ``reparameterize``.
    """
    world = world or World(rank=0, size=1, device=device or torch.device("cpu"))
    device = device or world.device
    body = _network(weights).to(device)
    names = adapted_convolutions(body, reparameterize)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    shard = list(images[world.rank :: world.size])
    loader = WorkerLoader(
        _Crops(shard, batch_size),
        start=0,
        end=math.ceil(len(shard) / batch_size),
        workers=workers,
        pin_memory=device.type == "cuda",
        pack=True,
        what="reads images",
    )
    unreadable: list[str] = []
    shown = console if console is not None and world.is_main else Console(quiet=True)
    with ProgressBar(shown, "responses", len(shard)) as bar:
        summed = _sum(body, _batches(loader, device, unreadable, bar), names, world, unreadable)
    everywhere = [reason for part in world.gather_objects(unreadable) for reason in part]
    if everywhere and world.is_main:
        _report(
            everywhere,
            len(images),
            warn or (lambda line: shown.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)),
        )
    return summed


def find_images(path: Path | str, count: int | None = None) -> list[Path]:
    """The images a user names.

    Args:
        path: a folder (searched with all its subfolders), a text file with one path a line (relative ones are
            relative to that file; empty lines and lines that start with # are passed over), or one image.
        count: at most so many, spread evenly over the sorted list; None: all.

    Raises:
        UserError: no such place, no images there, or ``count`` below 1.
    """
    path = Path(path).expanduser()
    if count is not None and count < 1:
        raise UserError(f"{count} images are too few for Response Initialization; give at least 1")
    if path.is_dir():
        walked = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        found = sorted(file for file in walked if _is_image(file))
    elif path.is_file():
        found = [path] if _is_image(path) else _listed(path)
    else:
        raise UserError(f"'{path}' does not exist; give a folder of images, a text file that lists images, or an image")
    if not found:
        raise UserError(f"no images in '{path}'; names of images end in {', '.join(_SUFFIXES)}")
    if count is not None and count < len(found):
        found = [found[i * len(found) // count] for i in range(count)]
    return found


def _is_image(path: Path) -> bool:
    # "._photo.jpg" is metadata that macOS puts into archives.
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith("._")


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is neither an image nor a list of images (one path a line, UTF-8)") from error
    listed = [path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if missing := [file for file in listed if not file.is_file()]:
        raise UserError(
            f"'{path}' lists '{missing[0]}', which does not exist ({len(missing)} of {len(listed)} missing)"
        )
    return listed


def _network(weights: BackboneWeights) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        body = timm.create_model(weights.arch, num_classes=0)
    if not isinstance(body, ResNet):
        raise UserError(f"'{weights.arch}' is not a ResNet; Response Initialization needs one, for example resnet50")
    load_backbone(body, weights)
    return body.eval().requires_grad_(False).to(memory_format=torch.channels_last)


class _Crops:
    """Makes the n-th batch of image files: (N, 3, 224, 224) uint8, and a line for every file that cannot be read."""

    def __init__(self, files: Sequence[Path], batch_size: int):
        self.files, self.batch_size = files, batch_size

    def __call__(self, number: int) -> tuple[Tensor, list[str]]:
        crops, reasons = [], []
        for file in self.files[number * self.batch_size : (number + 1) * self.batch_size]:
            try:
                crops.append(evaluation_crop(read_image(file), RESIZE, CROP))
            except UserError as error:
                reasons.append(str(error))
        return torch.stack(crops) if crops else torch.empty(0, 3, CROP, CROP, dtype=torch.uint8), reasons


def _batches(
    loader: WorkerLoader[tuple[Tensor, list[str]]], device: torch.device, unreadable: list[str], bar: ProgressBar
) -> Iterator[Tensor]:
    """Normalised batches on the device; what cannot be read goes into ``unreadable``."""
    done = 0
    for crops, reasons in loader:
        unreadable.extend(reasons)
        if len(crops):
            yield normalise(crops.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        done += len(crops) + len(reasons)
        bar.update(done)


def _sum(
    body: ResNet, batches: Iterator[Tensor], names: Sequence[str], world: World, unreadable: Sequence[str]
) -> dict[str, Moments]:
    try:
        return response_moments(body, batches, names=names, world=world)
    except NoImages as error:
        if not unreadable:
            raise
        raise UserError(f"none of the images can be read; first: {unreadable[0]}") from error


def _report(unreadable: Sequence[str], total: int, warn: Callable[[str], None]) -> None:
    named = "; ".join(unreadable[:_NAMED]) + ("; ..." if len(unreadable) > _NAMED else "")
    warn(f"{len(unreadable)} of {total} images cannot be read and are left out of the response moments: {named}")
