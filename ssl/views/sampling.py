"""Draw the views of a batch: boxes and augmentation parameters, from (seed, epoch, image index) and nothing else."""

import numpy as np
import torch

from polyscene.runtime.errors import UserError
from polyscene.runtime.randomness import uniforms

from .autoaugment import sample_policy
from .crops import NUMBERS_PER_TRY, TRIES, capped_pairs, constrained_crops, inside_crops, random_resized_crops
from .photometric import NUMBERS_PER_VIEW, sample_standard
from .spec import ANCHOR, ViewParameters, ViewSpec

FLIP_PROBABILITY = 0.5

# Streams of random numbers. The tries of a capped pair take one stream each, from PAIR_STREAM on.
LARGE_STREAM, SMALL_STREAM, FLIP_STREAM, BRANCH_STREAM, STANDARD_STREAM, POLICY_STREAM, PAIR_STREAM = range(7)


def sample_views(seed: int, epoch: int, indices, sizes, spec: ViewSpec) -> ViewParameters:
    """Draw everything random about the views of some images.

    An image's parameters do not depend on the other images of the batch or on their order, and a view's do not change
    when further small crops are asked for.

    Args:
        seed: the run's seed.
        epoch: the epoch; another epoch gives other views.
        indices: (B,) integers, the images' indices in the data set.
        sizes: (B, 2) integers, the images' height and width in pixels.
        spec: which views.

    Returns:
        `ViewParameters` of B images and `spec.num_views` views.

    Raises:
        UserError: `sizes` has another shape, or an image has no pixels.
    """
    indices, sizes = np.asarray(indices), np.asarray(sizes)
    if sizes.shape != (len(indices), 2):
        raise UserError(f"sizes must be height and width of each of the {len(indices)} images, got shape {sizes.shape}")
    if sizes.size and sizes.min() < 1:
        raise UserError(f"sizes: image {indices[sizes.min(axis=1).argmin()]} has no pixels; leave it out")

    def draw(stream: int, per_view: int, views: int = spec.num_views) -> np.ndarray:
        return uniforms(seed, epoch, indices, stream, views * per_view).reshape(len(indices), views, per_view)

    boxes, fallback = _sample_boxes(seed, epoch, indices, sizes, spec)
    policy, applied, magnitudes = sample_policy(draw(POLICY_STREAM, 5))
    automatic = {
        "standard": lambda coin: np.zeros_like(coin, dtype=np.uint8),
        "autoaugment": lambda coin: np.ones_like(coin, dtype=np.uint8),
        "mix": lambda coin: (coin < 0.5).astype(np.uint8),
    }
    branch = automatic[spec.augmentation](draw(BRANCH_STREAM, 1)[..., 0])
    branch[:, ANCHOR] = 0
    arrays = {
        "boxes": boxes,
        "fallback": fallback,
        "flip": draw(FLIP_STREAM, 1)[..., 0] < FLIP_PROBABILITY,
        "branch": branch,
        "policy": policy,
        "applied": applied,
        "magnitudes": magnitudes,
        **sample_standard(draw(STANDARD_STREAM, NUMBERS_PER_VIEW)),
    }
    return ViewParameters(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _sample_boxes(seed, epoch, indices, sizes, spec: ViewSpec) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (B, V, 4) of all views, and (B, V) whether a view's constraint could not be met."""

    def draw(stream: int, rows, views: int, tries: int) -> np.ndarray:
        numbers = uniforms(seed, epoch, indices[rows], stream, views * tries * NUMBERS_PER_TRY)
        return numbers.reshape(-1, views, tries, NUMBERS_PER_TRY)

    everything = slice(None)
    large = random_resized_crops(draw(LARGE_STREAM, everything, spec.large.count, TRIES), sizes, spec.large)
    fallback = np.zeros((len(indices), spec.num_views), dtype=bool)
    if spec.max_iou is not None:
        pairs, over_cap = capped_pairs(
            lambda attempt, rows: draw(PAIR_STREAM + attempt, rows, 2, TRIES), sizes, spec.large, spec.max_iou
        )
        large[:, :2] = pairs
        fallback[:, :2] = over_cap[:, None]
    if spec.num_small == 0:
        return large, fallback

    anchors = large[:, ANCHOR]
    if spec.constraint == "none":
        small = random_resized_crops(draw(SMALL_STREAM, everything, spec.num_small, TRIES), sizes, spec.small)
    elif spec.constraint == "inside":
        numbers = draw(SMALL_STREAM, everything, spec.num_small, TRIES)
        small, fallback[:, spec.large.count :] = inside_crops(numbers, sizes, anchors, spec.small)
    else:
        numbers = draw(SMALL_STREAM, everything, spec.num_small, 2 * TRIES)
        small, fallback[:, spec.large.count :] = constrained_crops(
            numbers, sizes, anchors, spec.small, spec.min_overlap
        )
    return np.concatenate([large, small], axis=1), fallback
