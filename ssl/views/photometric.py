"""The standard colour augmentation as parameters, and the operations of a view (of either branch) as a short program.

Colour jitter, grey and blur of MoCo-v2 (Chen et al. 2020), which the thesis uses unchanged (section 7.2). Pixels are
changed by `colour.apply`.
"""

from typing import NamedTuple

import numpy as np

from .autoaugment import IMAGENET_POLICY
from .colour import OPERATIONS
from .spec import AUTOAUGMENT, ViewParameters

JITTER_PROBABILITY = 0.8
JITTER_STRENGTH = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation: factor 1 +- x; hue: shift +- x turns
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)  # pixels of the view
NUMBERS_PER_VIEW = 12
NOTHING = -1


class Step(NamedTuple):
    """One operation on some views of a batch, each with its own amount."""

    operation: str
    views: np.ndarray  # (n,) int64
    amounts: np.ndarray  # (n,) float32


def sample_standard(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Draw the standard augmentation of each view.

    Args:
        numbers: (..., 12) in [0, 1): jitter, four for the order, four for the factors, grey, blur, sigma.

    Returns:
        The fields jitter, order, factors, grey and sigma of `ViewParameters`, as arrays.
    """
    strength = np.array(JITTER_STRENGTH)
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = BLUR_SIGMA
    sigma = np.where(numbers[..., 10] < BLUR_PROBABILITY, low + (high - low) * numbers[..., 11], 0.0)
    return {
        "jitter": numbers[..., 0] < JITTER_PROBABILITY,
        "order": numbers[..., 1:5].argsort(axis=-1).astype(np.uint8),
        "factors": (centre + strength * (2 * numbers[..., 5:9] - 1)).astype(np.float32),
        "grey": numbers[..., 9] < GREY_PROBABILITY,
        "sigma": sigma.astype(np.float32),
    }


def programs(params: ViewParameters) -> tuple[np.ndarray, np.ndarray]:
    """The operations of each view in order, of whichever branch it drew.

    Standard: the four jitter operations in the drawn order, grey, blur. AutoAugment: the two of the sub-policy. The
    horizontal flip is not among them, because it is done while resizing: that is its place in the AutoAugment branch,
    and it commutes with every operation of the standard branch, where it comes last.

    Returns:
        operations (B, V, 6) int64, positions in `colour.OPERATIONS` or -1 for none, and amounts (B, V, 6) float32.
    """
    code = {name: OPERATIONS.index(name) for name in OPERATIONS}
    order = params.order.numpy().astype(np.int64)
    standard = np.full((*order.shape[:2], 6), NOTHING)
    amounts = np.zeros(standard.shape, dtype=np.float32)
    jitter = np.array([code[name] for name in JITTER_OPERATIONS])[order]
    standard[..., :4] = np.where(params.jitter.numpy()[..., None], jitter, NOTHING)
    standard[..., 4] = np.where(params.grey.numpy(), code["grey"], NOTHING)
    standard[..., 5] = np.where(params.sigma.numpy() > 0, code["blur"], NOTHING)
    amounts[..., :4] = np.take_along_axis(params.factors.numpy(), order, axis=-1)
    amounts[..., 5] = params.sigma.numpy()

    pairs = np.array([[code[name] for name, _, _ in pair] for pair in IMAGENET_POLICY])
    automatic = np.full_like(standard, NOTHING)
    automatic[..., :2] = np.where(params.applied.numpy(), pairs[params.policy.numpy()], NOTHING)
    chosen = (params.branch.numpy() == AUTOAUGMENT)[..., None]
    amounts[..., :2] = np.where(chosen, params.magnitudes.numpy(), amounts[..., :2])
    return np.where(chosen, automatic, standard), amounts


def schedule(operations: np.ndarray, amounts: np.ndarray) -> list[Step]:
    """Turn the programs of many views into steps that each run one operation on all views that need it next.

    Args:
        operations: (N, R) programs, see `programs`.
        amounts: (N, R).

    Returns:
        At most R times the number of operations steps; for each view they keep the order of its program.
    """
    steps = []
    for column in range(operations.shape[1]):
        present = np.bincount(operations[:, column] + 1, minlength=len(OPERATIONS) + 1)[1:]
        for code in np.flatnonzero(present):
            views = np.flatnonzero(operations[:, column] == code)
            steps.append(Step(OPERATIONS[code], views, amounts[views, column]))
    return steps
