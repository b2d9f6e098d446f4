import numpy as np
import pytest
import torch
from scipy.stats import kstest

from polyscene.runtime.errors import UserError
from polyscene.runtime.randomness import uniforms

INDICES = np.arange(20_000)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63, 2**200 + 3])
def test_numbers_are_uniform_over_images_and_over_counters(seed):
    assert kstest(uniforms(seed, 3, INDICES, 2, 1).ravel(), "uniform").pvalue > 1e-3
    assert kstest(uniforms(seed, 3, [7], 2, 20_000).ravel(), "uniform").pvalue > 1e-3


def test_numbers_lie_in_the_half_open_unit_interval():
    numbers = uniforms(0, 0, INDICES, 0, 20)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1


@pytest.mark.parametrize(
    "other",
    [
        uniforms(1, 0, INDICES, 0, 1),
        uniforms(0, 1, INDICES, 0, 1),
        uniforms(0, 0, INDICES + 1, 0, 1),
        uniforms(0, 0, INDICES, 1, 1),
        uniforms(0, 0, INDICES, 0, 2)[:, 1:],
        uniforms(1, 1, INDICES, 0, 1),
    ],
    ids=["seed", "epoch", "index", "stream", "counter", "seed and epoch"],
)
def test_neighbouring_coordinates_give_independent_numbers(other):
    numbers = uniforms(0, 0, INDICES, 0, 1)
    assert not np.intersect1d(numbers, other).size or np.array_equal(numbers[1:], other[:-1])
    assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(len(INDICES))
    # Joint uniformity: the sum modulo one is uniform for independent numbers.
    assert kstest((numbers + other).ravel() % 1, "uniform").pvalue > 1e-3


def test_coordinates_do_not_stand_for_one_another():
    assert uniforms(1, 0, [0], 0, 1) != uniforms(0, 1, [0], 0, 1)
    assert uniforms(0, 1, [0], 0, 1) != uniforms(0, 0, [1], 0, 1)
    assert uniforms(0, 0, [1], 0, 1) != uniforms(0, 0, [0], 1, 1)


def test_a_row_depends_on_its_index_only():
    whole = uniforms(5, 6, INDICES[:100], 1, 8)
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(uniforms(5, 6, order, 1, 8), whole[order])
    assert np.array_equal(np.concatenate([uniforms(5, 6, part, 1, 8) for part in (order[:3], order[3:])]), whole[order])
    assert np.array_equal(uniforms(5, 6, torch.arange(100), 1, 3), whole[:, :3])


def test_no_image_and_no_number_are_fine():
    assert uniforms(0, 0, [], 0, 4).shape == (0, 4)
    assert uniforms(0, 0, [3], 0, 0).shape == (1, 0)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="indices must be a one-dimensional list of integers"):
        uniforms(0, 0, [[1]], 0, 1)
    with pytest.raises(UserError, match="indices must be"):
        uniforms(0, 0, [0.5], 0, 1)
    with pytest.raises(UserError, match="count=-1"):
        uniforms(0, 0, [0], 0, -1)
