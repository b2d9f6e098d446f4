"""Counter-based random numbers: what is drawn for an image is a function of (seed, epoch, index) and of nothing else.

There is no generator whose state could depend on the number of workers, on the batch an image fell into, or on whether
the run was resumed; every number is the hash of its own coordinates.
"""

import numpy as np

from .errors import UserError

# Increment and multipliers of splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014; the finaliser's constants are Stafford's variant 13, as in the paper's reference implementation.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, epoch: int, indices, stream: int, count: int) -> np.ndarray:
    """Uniform random numbers in [0, 1) that depend on their own coordinates only.

    Row i depends on (seed, epoch, indices[i], stream); its first numbers do not change when `count` grows.

    Args:
        seed: any integer (the run's seed), taken modulo 2**64.
        epoch: any integer.
        indices: (B,) integers (array, tensor or list), the images' indices in the data set.
        stream: integer that separates purposes (boxes, flips, ...).
        count: numbers per image, >= 0.

    Returns:
        (B, count) float64 with 53 random bits.

    Raises:
        UserError: `indices` is not a one-dimensional list of integers, or `count` is negative.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise UserError(
            f"indices must be a one-dimensional list of integers, got {indices.dtype} of shape {indices.shape}"
        )
    if count < 0:
        raise UserError(f"count={count}: must be >= 0")
    key = np.zeros(1, dtype=np.uint64)
    for word in (_words(seed), _words(epoch), indices.astype(np.int64).view(np.uint64), _words(stream)):
        key = _mix(key ^ _mix(word + _INCREMENT))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT
    bits = _mix(key[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _words(value: int) -> np.ndarray:
    # An array of one element: numpy warns about wrap-around of scalars, but not of arrays.
    return np.array([int(value) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: a bijection of 64-bit words in which every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * _MULTIPLIER_1
    words = (words ^ (words >> np.uint64(27))) * _MULTIPLIER_2
    return words ^ (words >> np.uint64(31))
