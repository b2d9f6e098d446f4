"""AutoAugment's ImageNet policy as data, and the drawing of a sub-policy per view.

Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, table 9 (appendix); magnitudes as in
torchvision's `AutoAugmentPolicy.IMAGENET`. The pixels are changed by `colour.apply`.
"""

import numpy as np

LEVELS = 10

# A sub-policy is two operations (name, probability, level of magnitude), carried out one after the other.
# "saturation" is AutoAugment's Color. Some sub-policies occur twice in the published list: they are twice as likely.
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("saturation", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("saturation", 1.0, 2)),
    (("saturation", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("saturation", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def magnitude(operation: str, level: int, positive: bool) -> float:
    """Magnitude of an operation at a level 0..9, as `colour.apply` expects it.

    Degrees for rotate, tangent for shear_x, a factor (1 = unchanged) for saturation, contrast and sharpness, bits for
    posterize, a threshold on 0..255 for solarize, 0 for operations without magnitude. The sign only matters for the
    first two kinds, where it mirrors the transform or the direction of the factor.
    """
    share = level / (LEVELS - 1)
    sign = 1.0 if positive else -1.0
    if operation == "rotate":
        return sign * 30.0 * share
    if operation == "shear_x":
        return sign * 0.3 * share
    if operation in ("saturation", "contrast", "sharpness"):
        return 1.0 + sign * 0.9 * share
    if operation == "posterize":
        return 8.0 - round(4 * share)
    if operation == "solarize":
        return 255.0 * (1.0 - share)
    return 0.0


def sample_policy(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw sub-policies: uniformly among the 25, each operation with its probability, its sign with a fair coin.

    Args:
        numbers: (..., 5) in [0, 1): sub-policy, two for the probabilities, two for the signs.

    Returns:
        sub-policy (...,) uint8, applied (..., 2) bool, magnitudes (..., 2) float32.
    """
    policy = np.floor(numbers[..., 0] * len(IMAGENET_POLICY)).astype(np.uint8)
    probabilities = np.array([[p for _, p, _ in pair] for pair in IMAGENET_POLICY])
    signed = np.array(
        [[[magnitude(name, level, s) for s in (False, True)] for name, _, level in pair] for pair in IMAGENET_POLICY],
        dtype=np.float32,
    )
    applied = numbers[..., 1:3] < probabilities[policy]
    positive = (numbers[..., 3:5] >= 0.5).astype(np.int64)
    magnitudes = np.take_along_axis(signed[policy], positive[..., None], axis=-1)[..., 0]
    return policy, applied, magnitudes
