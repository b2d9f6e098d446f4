"""Joint augmentation of an image and all its targets, and what evaluation does instead.

Parameters first, pixels second: what happens to an image is drawn from (seed, epoch, index) and from nothing else, so
that a sample is the same for any number of workers, before and after a resume. All steps of a recipe are one affine
map, and every pixel is interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyscene.runtime.errors import UserError

from ..tasks.spec import Target, TaskSpec
from .records import Sample
from .warp import FILL, lookup, warp_image, warp_target

_STREAM = 2001  # separates these numbers from others drawn from the same seed


@dataclass(frozen=True)
class Augmentation:
    """A recipe. The image is scaled and turned about its centre, fitted into the output, and perhaps mirrored.

    Attributes:
        size: (height, width) of the output.
        fit: ``crop``: a random window of the scaled image, padded where that is smaller; ``stretch``: the window of
            the original size about the centre, stretched to the output, whatever that does to its proportions.
        scales: factors to choose from.
        between: choose any factor between the first and the last of ``scales``.
        degrees: turn by up to so much, either way.
        flip: probability of mirroring left to right.
    """

    size: tuple[int, int]
    fit: str = "crop"
    scales: tuple[float, ...] = (1.0,)
    between: bool = False
    degrees: float = 0.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "stretch"):
            raise UserError(f"fit='{self.fit}': must be crop or stretch")
        if min(self.size) < 1 or len(self.size) != 2:
            raise UserError(f"size={list(self.size)}: must be a height and a width of at least 1")
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"scales={list(self.scales)}: must be factors above 0")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip={self.flip}: must be a probability from 0 to 1")


def rcm_augmentation(size: tuple[int, int]) -> Augmentation:
    """RCM (and ASTMT): scale 0.5 to 2 in steps of 0.25, pad and crop, flip.

    Args:
        size: 512x512 for PASCAL, 425x560 for NYUD.
    """
    return Augmentation(size, "crop", (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0))


def mti_net_nyud_augmentation(size: tuple[int, int] = (480, 640)) -> Augmentation:
    """MTI-Net on NYUD: zoom into the centre by 1, 1.2 or 1.5, flip."""
    return Augmentation(size, "stretch", (1.0, 1.2, 1.5))


def mti_net_pascal_augmentation(size: tuple[int, int] = (512, 512)) -> Augmentation:
    """MTI-Net on PASCAL: turn by up to 20 degrees, scale by 0.75 to 1.25 about the centre, flip."""
    return Augmentation(size, "stretch", (0.75, 1.25), between=True, degrees=20.0)


class Draw(NamedTuple):
    """What happens to one image: a factor, degrees counter-clockwise, mirrored or not, and the place of the window
    (shares in [0, 1) of the room there is: 0 = left or top)."""

    scale: float
    degrees: float
    flip: bool
    left: float
    top: float


def draw(recipe: Augmentation, seed: int, epoch: int, index: int) -> Draw:
    """The parameters of an image, a pure function of its arguments.

    Args:
        recipe: what may happen.
        seed: the run's seed, taken modulo 2**64.
        epoch: from 0.
        index: of the image in its split.
    """
    entropy = (seed % 2**64, epoch % 2**64, index % 2**64, _STREAM)
    numbers = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(5)
    if recipe.between:
        scale = recipe.scales[0] + numbers[0] * (recipe.scales[-1] - recipe.scales[0])
    else:
        scale = recipe.scales[int(numbers[0] * len(recipe.scales))]
    degrees = (2 * numbers[1] - 1) * recipe.degrees
    return Draw(float(scale), float(degrees), bool(numbers[2] < recipe.flip), float(numbers[3]), float(numbers[4]))


def output_to_input(recipe: Augmentation, drawn: Draw, size: tuple[int, int]) -> np.ndarray:
    """The affine map of one image, (2, 3) float64, for `warp.lookup`.

    Args:
        recipe: its output size and how the image is fitted into it.
        drawn: the parameters.
        size: (H, W) of the input.
    """
    (height, width), (out_height, out_width) = size, recipe.size
    mirror = np.array([[-1.0, 0, out_width], [0, 1, 0], [0, 0, 1]]) if drawn.flip else np.eye(3)
    if recipe.fit == "crop":
        scaled_height, scaled_width = round(height * drawn.scale), round(width * drawn.scale)
        left = _offset(scaled_width, out_width, drawn.left)
        top = _offset(scaled_height, out_height, drawn.top)
        # Scale by what the rounded size says, so that the borders of the scaled image are those of the image.
        x_scale, y_scale = max(scaled_width, 1) / width, max(scaled_height, 1) / height
        fit = np.array([[1 / x_scale, 0, left / x_scale], [0, 1 / y_scale, top / y_scale], [0, 0, 1]])
        zoom = np.eye(3)
    else:
        fit = np.diag([width / out_width, height / out_height, 1.0])
        zoom = _about_centre(np.eye(2) / drawn.scale, size)
    cosine, sine = math.cos(math.radians(drawn.degrees)), math.sin(math.radians(drawn.degrees))
    # With y pointing down, this turns counter-clockwise output points back, clockwise.
    turn = _about_centre(np.array([[cosine, -sine], [sine, cosine]]), size)
    return (turn @ zoom @ fit @ mirror)[:2]


def _offset(scaled: int, wanted: int, share: float) -> int:
    """Where a window starts in a line of ``scaled`` pixels; negative: so many pixels of padding come first."""
    room = scaled - wanted
    start = int(share * (abs(room) + 1))
    return start if room >= 0 else -start


def _about_centre(linear: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    centre = np.array([size[1] / 2, size[0] / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre - linear @ centre
    return matrix


def augment(
    sample: Sample, tasks: Mapping[str, TaskSpec], recipe: Augmentation, *, seed: int, epoch: int, index: int
) -> Sample:
    """A training sample: image and targets of the recipe's size; targets of image-level tasks stay as they are.

    Args:
        sample: what `DenseImages.read` returned.
        tasks: of its targets.
        recipe: what may happen.
        seed: the run's seed.
        epoch: from 0.
        index: of the image in its split.
    """
    return apply(sample, tasks, recipe, draw(recipe, seed, epoch, index))


def apply(sample: Sample, tasks: Mapping[str, TaskSpec], recipe: Augmentation, drawn: Draw) -> Sample:
    """`augment` with given parameters."""
    size = (sample.image.shape[1], sample.image.shape[2])
    where = lookup(output_to_input(recipe, drawn, size), size, recipe.size)
    targets = {}
    for name, target in sample.targets.items():
        if tasks[name].image_level:
            targets[name] = target
            continue
        rule = tasks[name].geometry
        values, valid = warp_target(target, where, rule.interpolation)
        values = rule.after_scale(rule.after_rotation(values, drawn.degrees), drawn.scale)
        if drawn.flip:
            values = rule.after_flip(values)
        targets[name] = rule.repair(values, valid)
    return Sample(sample.name, warp_image(sample.image, where), targets)


def pad_image(image: Tensor, size: tuple[int, int] = (1, 1), multiple: int = 1) -> Tensor:
    """For evaluation: add `FILL` at the right and bottom until the image has ``size`` and divides by ``multiple``.

    Predictions are cut back to the image by ``[..., :H, :W]``; targets stay as they are.

    Args:
        image: (3, H, W) uint8; a larger image is not cut.
        size: least height and width.
        multiple: of which height and width are to be multiples.
    """
    height, width = (-(-max(have, want) // multiple) * multiple for have, want in zip(image.shape[1:], size))
    padded = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded


def stretch_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """For evaluation as MTI-Net does it: (3, H, W) uint8 -> (3, h, w) uint8, proportions not kept."""
    resized = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


@dataclass
class Batch:
    """Samples of one size.

    Attributes:
        names: of the B images.
        images: (B, 3, H, W) uint8, channels last.
        targets: task name -> target with leading B.
    """

    names: list[str]
    images: Tensor
    targets: dict[str, Target]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        moved = {
            name: Target(*(part.to(device, non_blocking=non_blocking) for part in target))
            for name, target in self.targets.items()
        }
        return Batch(self.names, self.images.to(device, non_blocking=non_blocking), moved)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's DataLoader."""
        pinned = {name: Target(*(part.pin_memory() for part in target)) for name, target in self.targets.items()}
        return Batch(self.names, self.images.pin_memory(), pinned)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size and the same tasks together."""
    images = torch.stack([sample.image for sample in samples]).contiguous(memory_format=torch.channels_last)
    targets = {
        name: Target(*(torch.stack(parts) for parts in zip(*(sample.targets[name] for sample in samples))))
        for name in samples[0].targets
    }
    return Batch([sample.name for sample in samples], images, targets)
