"""Which images of a data set a run uses: a number of them at random, the same number of each class, or a long tail.

The same seed and the same sorted list of images give the same subset, whatever the machine or the numpy version.
"""

from __future__ import annotations

import numpy as np

from polyscene.runtime.errors import UserError
from polyscene.runtime.randomness import uniforms

PARETO_POWER = 6.0
"""Power of the class sizes of ImageNet-LT (Liu et al., "Large-scale long-tailed recognition in an open world",
CVPR 2019, section 4)."""

SMALLEST_CLASS = 5 / 115.846
"""Smallest class as a share of the mean class: ImageNet-LT has at least 5 images a class, 115,846 in 1,000 classes."""

# Streams of random numbers; those of the views count from 0.
_IMAGE_STREAM, _CLASS_STREAM = 1001, 1002


def random_subset(count: int, total: int, seed: int) -> np.ndarray:
    """``total`` of ``count`` images, each equally likely: sorted int64 indices.

    Raises:
        UserError: more images wanted than there are, or none.
    """
    _check_total(total, count)
    order = np.argsort(_numbers(seed, count, _IMAGE_STREAM), kind="stable")
    return np.sort(order[:total])


def balanced_subset(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """``total`` images with the same number of every class, as far as its images last: sorted int64 indices.

    Where the classes cannot all have the same number, chance decides which get one more.

    Args:
        labels: (N,) class of every image, 0..C-1.
        total: images wanted.
        seed: of the choice.

    Raises:
        UserError: more images wanted than there are, or none.
    """
    _check_total(total, len(labels))
    available = np.bincount(labels)
    order = _class_order(available, seed)
    sizes = np.zeros_like(available)
    sizes[order] = _allot(np.ones(len(order)), available[order], total, smallest=0)
    return _pick(labels, sizes, seed)


def long_tailed_subset(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """``total`` images whose class sizes follow a Pareto law, as in ImageNet-LT: sorted int64 indices.

    The sizes, in a random order of the classes, are those of `pareto_shares`, scaled so that they add up to ``total``;
    no class gets fewer than one image or more than it has.

    Args:
        labels: (N,) class of every image, 0..C-1; classes without images do not count.
        total: images wanted.
        seed: of the order of the classes and of the choice within them.

    Raises:
        UserError: more images wanted than there are, or fewer than classes.
    """
    _check_total(total, len(labels))
    available = np.bincount(labels)
    order = _class_order(available, seed)
    if total < len(order):
        raise UserError(
            f"subset={total}: a long-tailed subset needs at least one image of each of {len(order)} classes"
        )
    sizes = np.zeros_like(available)
    sizes[order] = _allot(pareto_shares(len(order)), available[order], total, smallest=1)
    return _pick(labels, sizes, seed)


def pareto_shares(classes: int) -> np.ndarray:
    """Relative sizes of the classes of a long-tailed data set, largest first, with mean 1.

    A constant plus the quantiles of Pareto's second law (Lomax) with power 6, at the middle of ``classes`` equal
    steps: ``SMALLEST_CLASS + a * (((i + 0.5) / classes) ** (-1/6) - 1)``. It is the second law, which starts at zero,
    that reproduces ImageNet-LT (1,280 to 5 images; 385 classes above 100 and 136 below 20 images): the first law would
    make the largest of 1,000 classes only 3.2 times the smallest.
    """
    steps = (np.arange(classes) + 0.5) / classes
    tail = steps ** (-1 / PARETO_POWER) - 1
    return SMALLEST_CLASS + (1 - SMALLEST_CLASS) * tail / tail.mean()


def _allot(shares: np.ndarray, available: np.ndarray, total: int, smallest: int) -> np.ndarray:
    """Whole numbers that add up to ``total``: proportional to ``shares``, within ``smallest`` and ``available``."""

    def scaled(factor: float) -> np.ndarray:
        return np.clip(factor * shares, smallest, available)

    low, high = 0.0, float(available.max() / shares.min())
    for _ in range(200):  # the sum grows with the factor; bisection down to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).sum() < total else (low, middle)
    exact = scaled(high)
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    # Largest remainders first; `sort` is stable, so equal remainders go by the (random) order of the classes.
    left = np.argsort(-(exact - sizes), kind="stable")
    sizes[left[: total - sizes.sum()]] += 1
    return sizes


def _pick(labels: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """``sizes[c]`` random images of every class c."""
    order = np.lexsort((_numbers(seed, len(labels), _IMAGE_STREAM), labels))
    first = np.cumsum(np.bincount(labels, minlength=len(sizes))) - np.bincount(labels, minlength=len(sizes))
    place = np.arange(len(labels)) - first[labels[order]]
    return np.sort(order[place < sizes[labels[order]]])


def _class_order(available: np.ndarray, seed: int) -> np.ndarray:
    """The classes that have images, shuffled."""
    order = np.argsort(_numbers(seed, len(available), _CLASS_STREAM), kind="stable")
    return order[available[order] > 0]


def _numbers(seed: int, count: int, stream: int) -> np.ndarray:
    return uniforms(seed, 0, np.arange(count), stream, 1)[:, 0]


def _check_total(total: int, count: int) -> None:
    if not 1 <= total <= count:
        raise UserError(f"subset={total}: must be between 1 and the {count} images there are")
