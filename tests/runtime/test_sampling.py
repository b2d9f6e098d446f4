"""Which images a step sees."""

import numpy as np
import pytest

from polyscene.runtime.errors import UserError
from polyscene.runtime.sampling import StepIndices, epoch_order, steps_per_epoch


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_order_is_a_permutation_that_changes_with_seed_and_epoch(count):
    orders = [epoch_order(seed, epoch, count) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count > 2:
        assert len({order.tobytes() for order in orders}) == len(orders)
    np.testing.assert_array_equal(epoch_order(1, 2, count), orders[-1])


def test_order_never_changes_between_versions():
    assert epoch_order(0, 0, 8).tolist() == [7, 3, 4, 5, 2, 6, 1, 0]


def test_every_place_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(1200):
        counts[epoch_order(3, epoch, 6), np.arange(6)] += 1
    assert np.abs(counts - 200).max() < 5 * 13  # standard deviation 12.9


def test_steps_per_epoch():
    assert steps_per_epoch(118_287, 256) == 462
    assert steps_per_epoch(8, 8) == 1
    with pytest.raises(UserError, match="7 images do not fill one batch of 8"):
        steps_per_epoch(7, 8)
    with pytest.raises(UserError, match="batch_size=0"):
        steps_per_epoch(7, 0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_batches_of_an_epoch(world):
    parts = [StepIndices(10, batch_size=4, rank=r, world_size=world, seed=3) for r in range(world)]
    for step in (0, 1, 2, 5, 4):  # in any order
        epoch, place = divmod(step, 2)
        found = [part(step) for part in parts]
        assert {number for number, _ in found} == {epoch}
        whole = np.concatenate([indices for _, indices in found])
        assert whole.tolist() == epoch_order(3, epoch, 10)[4 * place : 4 * place + 4].tolist()


def test_processes_that_do_not_divide_the_batch():
    with pytest.raises(UserError, match="batch_size=4 is not a multiple of 3 processes"):
        StepIndices(10, batch_size=4, rank=0, world_size=3, seed=0)
    with pytest.raises(UserError, match="rank 2 of 2"):
        StepIndices(10, batch_size=4, rank=2, world_size=2, seed=0)
