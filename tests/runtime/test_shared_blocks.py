import numpy as np
import pytest
import torch

from polyscene.runtime import shared_blocks
from polyscene.runtime.shared_blocks import SharedBlocks, lent
from polyscene.runtime.worker_loader import WorkerLoader


@pytest.fixture
def blocks():
    return SharedBlocks(lambda size: True)


def test_a_block_comes_back_when_nothing_uses_it_any_more(blocks):
    taken = blocks.take(1000)
    place = taken.data_ptr()
    pixels = lent(taken)
    assert pixels.data_ptr() == place
    part = pixels.view(10, 100)[3:4].permute(1, 0)
    as_array = pixels[5:].numpy()
    del pixels, taken
    assert blocks.take(1000).data_ptr() != place
    del part
    assert blocks.take(1000).data_ptr() != place
    del as_array
    assert blocks.take(1000).data_ptr() == place


def test_what_is_lent_can_be_written_up_to_its_end(blocks):
    pixels = lent(blocks.take(333))
    pixels.fill_(255)
    assert blocks.take(333).data_ptr() != pixels.data_ptr()
    assert (pixels == 255).all()


def test_a_block_serves_slightly_larger_batches_and_is_replaced_by_a_larger_one(blocks):
    first = lent(blocks.take(1000))
    place = first.data_ptr()
    del first
    second = lent(blocks.take(1050))
    assert second.data_ptr() == place
    del second
    third = lent(blocks.take(5000))
    assert len(third) == 5000
    assert len(blocks._blocks) == 1


def test_blocks_that_never_come_back_are_not_hoarded(blocks):
    taken = [blocks.take(10) for _ in range(shared_blocks.MOST + 5)]
    assert len({block.data_ptr() for block in taken}) == len(taken)
    assert len(blocks._blocks) == shared_blocks.MOST


def test_without_room_there_is_none():
    assert SharedBlocks(lambda size: size < 500).take(499) is None
    assert len(SharedBlocks(lambda size: size < 500).take(300)) == 300


def test_other_memory_is_left_alone():
    for size in (3, 64, 200):
        other = torch.full((size,), 7, dtype=torch.uint8).share_memory_()
        assert lent(other) is other
        assert (other == 7).all()


def number_array(number: int) -> dict:
    return {"values": torch.full((5000,), number, dtype=torch.uint8)}


def test_batches_that_are_kept_stay_as_they_were():
    kept = []
    for number, item in enumerate(WorkerLoader(number_array, start=0, end=60, workers=2, pack=True)):
        assert (item["values"] == number).all()
        if number % 3 == 0:
            kept.append((number, item["values"][::2]))
    for number, values in kept:
        assert np.array_equal(values.numpy(), np.full(2500, number, dtype=np.uint8))
