"""Crop boxes: random resized crops, small crops constrained by the anchor, and a cap on the overlap of the large ones.

Pure functions from uniform random numbers to integer boxes (top, left, height, width), vectorised in numpy over images,
crops and tries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyscene.runtime.errors import UserError

TRIES = 10  # tries of torchvision's RandomResizedCrop, and of the constrained draw
PAIR_TRIES = 50  # tries of the `max_iou` cap
NUMBERS_PER_TRY = 4  # area, aspect ratio, top, left


@dataclass(frozen=True)
class CropGroup:
    """Crops that share a distribution and an output size.

    Attributes:
        count: crops per image, >= 0.
        size: side of the rendered square, pixels.
        scale: smallest and largest crop area, as a share of the image's area.
        ratio: smallest and largest aspect ratio (width / height), drawn uniformly on a log scale.
    """

    count: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        object.__setattr__(self, "scale", tuple(self.scale))
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if self.count < 0:
            raise UserError(f"count={self.count}: the number of crops must be >= 0")
        if self.size < 1:
            raise UserError(f"size={self.size}: crops must be at least one pixel wide")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"scale={list(self.scale)}: give two shares of the image area, 0 < smallest <= largest <= 1"
            )
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise UserError(f"ratio={list(self.ratio)}: give two aspect ratios, 0 < smallest <= largest")


def draw_boxes(numbers: np.ndarray, sizes: np.ndarray, group: CropGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One try of a random resized crop per quadruple of random numbers (Szegedy et al. 2015; as torchvision's).

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, sides rounded half to even, position uniform.

    Args:
        numbers: (B, ..., 4) in [0, 1): area, aspect ratio, top, left.
        sizes: (B, 2) image height and width.
        group: the distribution.

    Returns:
        boxes (B, ..., 4) int64, target areas (B, ...) in pixels before rounding, and fits (B, ...): whether the box
        lies in the image. Boxes that do not fit have no meaning.
    """
    height, width = (_expand(sizes[:, i], numbers.ndim - 1) for i in (0, 1))
    low, high = group.scale
    target = height * width * (low + (high - low) * numbers[..., 0])
    log_low, log_high = math.log(group.ratio[0]), math.log(group.ratio[1])
    aspect = np.exp(log_low + (log_high - log_low) * numbers[..., 1])
    box_width = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    box_height = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    top = place(numbers[..., 2], np.maximum(height - box_height, 0))
    left = place(numbers[..., 3], np.maximum(width - box_width, 0))
    return np.stack([top, left, box_height, box_width], axis=-1), target, fits


def place(numbers: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Uniform integers in 0..room (both included) from numbers in [0, 1)."""
    return np.floor(numbers * (room + 1)).astype(np.int64)


def central_boxes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest central box whose aspect ratio lies in `ratio`: what a random resized crop falls back to.

    Args:
        sizes: (B, 2) image height and width.
        ratio: smallest and largest width / height.

    Returns:
        (B, 4) int64 boxes.
    """
    height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    tall, wide = width / height < ratio[0], width / height > ratio[1]
    box_height = np.where(tall, np.rint(width / ratio[0]).astype(np.int64), height)
    box_width = np.where(wide, np.rint(height * ratio[1]).astype(np.int64), width)
    # Ratios far from one on images of a few pixels can round to nothing, or beyond the image.
    box_height, box_width = np.clip(box_height, 1, height), np.clip(box_width, 1, width)
    return np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=-1)


def random_resized_crops(numbers: np.ndarray, sizes: np.ndarray, group: CropGroup) -> np.ndarray:
    """Random resized crops: the first of the tries that fits, else the central box.

    Args:
        numbers: (B, n, tries, 4) in [0, 1).
        sizes: (B, 2) image height and width.
        group: the distribution (its `count` is not used; n crops are made).

    Returns:
        (B, n, 4) int64 boxes, inside the image.
    """
    boxes, _, fits = draw_boxes(numbers, sizes, group)
    return _first(boxes, fits, central_boxes(sizes, group.ratio)[:, None])


def constrained_crops(
    numbers: np.ndarray, sizes: np.ndarray, anchors: np.ndarray, group: CropGroup, min_overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Small crops that overlap the anchor (constrained multi-crop, thesis section 7.4.1; published threshold).

    The first `TRIES` tries count if the box fits and its intersection with the anchor is at least `min_overlap` of its
    target area (area before rounding); the remaining tries only have to fit; the last resort is the central box.

    Args:
        numbers: (B, n, 2 * TRIES, 4) in [0, 1).
        sizes: (B, 2) image height and width.
        anchors: (B, 4) anchor boxes.
        group: distribution of the small crops.
        min_overlap: share of the small crop's area, in [0, 1].

    Returns:
        (B, n, 4) int64 boxes, and (B, n) bool: True where no constrained try succeeded.
    """
    boxes, target, fits = draw_boxes(numbers, sizes, group)
    overlaps = intersection(boxes, anchors[:, None, None]) >= min_overlap * target
    met = fits & overlaps
    met[..., TRIES:] = False
    fallback = ~met.any(axis=-1)
    accepted = met | fits & fallback[..., None] & (np.arange(met.shape[-1]) >= TRIES)
    return _first(boxes, accepted, central_boxes(sizes, group.ratio)[:, None]), fallback


def inside_crops(
    numbers: np.ndarray, sizes: np.ndarray, anchors: np.ndarray, group: CropGroup
) -> tuple[np.ndarray, np.ndarray]:
    """Small crops that lie inside the anchor (thesis figure 7.5).

    Sides are drawn as for any random resized crop (areas are shares of the full image); the first of the tries whose
    sides are no longer than the anchor's is placed uniformly inside it. If none is, the last try is cut to the anchor.

    Args:
        numbers: (B, n, tries, 4) in [0, 1).
        sizes: (B, 2) image height and width.
        anchors: (B, 4) anchor boxes.
        group: distribution of the small crops.

    Returns:
        (B, n, 4) int64 boxes, always inside the anchor, and (B, n) bool: True where the box had to be cut.
    """
    boxes, _, _ = draw_boxes(numbers, sizes, group)
    limits = anchors[:, None, None, 2:]
    sides = np.clip(boxes[..., 2:], 1, limits)
    offsets = place(numbers[..., 2:], limits - sides)
    boxes_inside = np.concatenate([anchors[:, None, None, :2] + offsets, sides], axis=-1)
    met = (sides == boxes[..., 2:]).all(axis=-1)
    return _first(boxes_inside, met, boxes_inside[:, :, -1]), ~met.any(axis=-1)


def capped_pairs(
    draw: Callable[[int, np.ndarray], np.ndarray], sizes: np.ndarray, group: CropGroup, max_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two large crops whose intersection over union is at most `max_iou` (thesis figures 7.3 and 7.4).

    Both boxes are redrawn together, so that accepted pairs follow the usual distribution given the cap. After
    `PAIR_TRIES` tries the pair with the lowest overlap so far is kept.

    Args:
        draw: `draw(try, rows)` returns random numbers (len(rows), 2, TRIES, 4) for the images `rows`.
        sizes: (B, 2) image height and width.
        group: distribution of the large crops.
        max_iou: the cap, in [0, 1].

    Returns:
        (B, 2, 4) int64 boxes, and (B,) bool: True where the cap could not be met.
    """
    best = np.zeros((len(sizes), 2, 4), dtype=np.int64)
    lowest = np.full(len(sizes), np.inf)
    for attempt in range(PAIR_TRIES):
        rows = np.flatnonzero(lowest > max_iou)
        if rows.size == 0:
            break
        boxes = random_resized_crops(draw(attempt, rows), sizes[rows], group)
        overlap = iou(boxes[:, 0], boxes[:, 1])
        better = overlap < lowest[rows]
        best[rows[better]], lowest[rows[better]] = boxes[better], overlap[better]
    return best, lowest > max_iou


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area shared by boxes (..., 4) top, left, height, width; leading dimensions broadcast. Pixels, (...)."""
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) top, left, height, width; leading dimensions broadcast. In [0, 1]."""
    shared = intersection(a, b)
    return shared / (a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared)


def mean_crop_iou(boxes) -> float:
    """Mean overlap of query and anchor crop over images: how far a crop distribution is from disjoint (figure 7.2).

    Args:
        boxes: (B, V, 4) array or tensor of boxes, view 0 the query and view 1 the anchor.
    """
    boxes = np.asarray(boxes)
    return float(iou(boxes[:, 0], boxes[:, 1]).mean())


def _first(boxes: np.ndarray, accepted: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """The first accepted of (..., tries, 4) boxes, or `otherwise` (broadcast to (..., 4)) where there is none."""
    first = np.take_along_axis(boxes, accepted.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    return np.where(accepted.any(axis=-1)[..., None], first, otherwise)


def _expand(values: np.ndarray, ndim: int) -> np.ndarray:
    return values.reshape(-1, *[1] * (ndim - 1))
