"""Training batches are a function of (seed, step)."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import RECIPE, make_images

from polyscene.downstream.multitask.data.transforms import augment
from polyscene.downstream.multitask.loading import train_batches
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.sampling import epoch_order


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "made", count=7)


def batches(images, start=0, end=5, workers=0, rank=0, size=1):
    world = World(rank=rank, size=size, device=torch.device("cpu"))
    arguments = {"batch_size": 4, "seed": 2, "start_step": start, "end_step": end, "workers": workers, "world": world}
    return list(train_batches(images, RECIPE, **arguments))


def assert_equal(one, other):
    assert one.names == other.names
    assert torch.equal(one.images, other.images)
    assert one.images.stride() == other.images.stride()
    for name, target in one.targets.items():
        for part, twin in zip(target, other.targets[name], strict=True):
            assert torch.equal(part, twin), name


def test_batches_are_the_augmented_images_of_the_epochs_order(images):
    for step, batch in enumerate(batches(images, end=3)):  # one step is an epoch: 3 images wait
        order = epoch_order(2, step, 7)[:4].tolist()
        assert batch.names == [images.names[index] for index in order]
        assert batch.images.shape == (4, 3, 24, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for place, index in enumerate(order):
            sample = augment(images.read(index), images.tasks, RECIPE, seed=2, epoch=step, index=index)
            assert torch.equal(batch.images[place], sample.image)
            for name, (values, valid) in sample.targets.items():
                assert torch.equal(batch.targets[name].values[place], values)
                assert torch.equal(batch.targets[name].valid[place], valid)


def test_any_number_of_workers_and_any_first_step(images):
    expected = batches(images)
    for start, workers in ((0, 1), (0, 3), (3, 0), (3, 2)):
        for batch, same in zip(expected[start:], batches(images, start=start, workers=workers), strict=True):
            assert_equal(batch, same)


def test_processes_share_the_global_batch(images):
    parts = [batches(images, rank=rank, size=2) for rank in range(2)]
    for batch, first, second in zip(batches(images), *parts, strict=True):
        assert first.names + second.names == batch.names
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_image_is_one_line(images, workers):
    images.image_path(int(epoch_order(2, 0, 7)[2])).unlink()
    with pytest.raises(UserError, match=r"\.png") as caught:
        batches(images, workers=workers)
    assert "\n" not in str(caught.value)


def test_numbers_that_do_not_fit(images):
    with pytest.raises(UserError, match="batch_size=4 is not a multiple of 3"):
        batches(images, size=3)
    with pytest.raises(UserError, match="3 images do not fill one batch of 4"):
        batches(images.subset(range(3)))
