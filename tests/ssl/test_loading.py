"""Batches are a function of (seed, step): same for any number of workers, any first step, any number of processes."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from loading_helpers import IMAGES, assert_equal, batches_of, sample

from polyscene.runtime import transport
from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.sampling import epoch_order
from polyscene.ssl import batches, loading
from polyscene.ssl.batches import ImageBatch, pack_images
from polyscene.ssl.loading import image_loader
from polyscene.ssl.sources import open_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def test_an_epoch_shows_whole_images_once_with_their_labels(source):
    found = batches_of(source, end=5)
    seen = torch.cat([batch.indices for batch in found])
    assert len(seen) == len(set(seen.tolist())) == 20  # the last 3 do not fill a batch
    assert seen.tolist() == epoch_order(0, 0, IMAGES)[:20].tolist()
    for step, batch in enumerate(found):
        assert (batch.step, batch.epoch, len(batch), batch.unreadable) == (step, 0, 4, [])
        torch.testing.assert_close(batch.shown, batch.indices)
        for image, index, label, size in zip(batch.images(), batch.indices, batch.labels, batch.sizes):
            torch.testing.assert_close(image, read_image(source.path(int(index))))
            assert image.permute(1, 2, 0).is_contiguous()
            assert image.untyped_storage().data_ptr() == batch.pixels.untyped_storage().data_ptr(), "copied"
            assert tuple(size.tolist()) == image.shape[1:]
            assert label == source.labels[index]
        torch.testing.assert_close(batch.params.values, sample(0, batch.indices, batch.sizes).values)


def test_another_epoch_another_order(source):
    found = batches_of(source, end=10)
    assert [batch.epoch for batch in found] == [0] * 5 + [1] * 5
    assert torch.cat([b.indices for b in found[5:]]).tolist() == epoch_order(0, 1, IMAGES)[:20].tolist()


def test_any_number_of_workers_and_any_first_step(source):
    expected = batches_of(source, end=12)
    for workers in (1, 4):
        for batch, same in zip(expected, batches_of(source, end=12, workers=workers), strict=True):
            assert_equal(batch, same)
    for start, workers in ((3, 0), (5, 2), (11, 0), (12, 0)):
        resumed = batches_of(source, start=start, end=12, workers=workers)
        for batch, same in zip(expected[start:], resumed, strict=True):
            assert_equal(batch, same)
    assert batches_of(source, start=13, end=12) == []


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batch(source, world):
    whole = batches_of(source, end=7)
    parts = [batches_of(source, end=7, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        for name in ("pixels", "indices", "labels"):
            joined = torch.cat([getattr(part[step], name) for part in parts])
            torch.testing.assert_close(joined, getattr(batch, name))


def test_the_loader_knows_its_length_and_leaves_torchs_generator_alone(source):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loader = image_loader(
        source, batch_size=4, rank=0, world_size=1, seed=0, start_step=2, end_step=9, workers=1, sample_views=sample
    )
    assert len(loader) == 7
    next(iter(loader))
    torch.testing.assert_close(torch.rand(3), expected)


def test_impossible_numbers(source):
    with pytest.raises(UserError, match="batch_size=4 is not a multiple of 3 processes"):
        batches_of(source, world=3)
    with pytest.raises(UserError, match="23 images do not fill one batch of 24"):
        batches_of(source, batch_size=24)
    with pytest.raises(UserError, match="workers=-1"):
        batches_of(source, workers=-1)
    with pytest.raises(UserError, match="rank 2 of 2"):
        batches_of(source, rank=2, world=2)


def test_packing():
    images = [torch.arange(3 * h * w, dtype=torch.uint8).view(3, h, w) for h, w in ((1, 1), (2, 5), (4, 3))]
    pixels, sizes = pack_images(images)
    zeros = torch.zeros(3, dtype=torch.int64)
    batch = ImageBatch(pixels, sizes, zeros, None, zeros, [], 0, 0, None)
    assert len(pixels) == 3 * (1 + 10 + 12)
    for image, packed in zip(images, batch.images(), strict=True):
        torch.testing.assert_close(packed, image, check_stride=False)


def test_moving_a_batch(source):
    batch = batches_of(source, end=1)[0]
    moved = batch.to("meta")
    assert moved.pixels.device.type == moved.labels.device.type == moved.params.device == "meta"
    assert moved.sizes.device.type == moved.indices.device.type == moved.shown.device.type == "cpu"
    assert [image.shape for image in moved.images()] == [image.shape for image in batch.images()]
    assert batch.pixels.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches(source):
    for batch in batches_of(source, workers=1, pin_memory=True):
        assert batch.pixels.is_pinned()
        assert batch.labels.is_pinned()
        assert batch.to("cuda", non_blocking=True).pixels.is_cuda


@pytest.mark.parametrize("fits", [True, False])
def test_with_and_without_room_in_shared_memory(source, monkeypatch, fits):
    lent = []
    monkeypatch.setattr(transport, "fits_shared_memory", lambda size: fits)
    monkeypatch.setattr(batches, "lent", lambda pixels: lent.append(pixels.is_shared()) or pixels)
    for batch, same in zip(batches_of(source), batches_of(source, workers=2), strict=True):
        assert_equal(batch, same)
        same.pixels.add_(1)  # writable, without a warning
    assert bool(lent) == fits
    assert all(lent)


def test_pickling_keeps_everything(source):
    batch = batches_of(source, end=1)[0]
    assert_equal(batch, pickle.loads(pickle.dumps(batch)))


def photographs() -> Path | None:
    places = (os.environ.get("POLYSCENE_DATA", ""), Path(loading.__file__).parents[1].parent / "shared" / "data")
    return next((Path(place) for place in places if place and (Path(place) / "tiny_imagenet40.tar").is_file()), None)


@pytest.mark.skipif(photographs() is None, reason="tiny_imagenet40.tar is not at hand (POLYSCENE_DATA)")
def test_real_photographs(tmp_path):
    import tarfile

    with tarfile.open(photographs() / "tiny_imagenet40.tar") as archive:
        some = [member for i, member in enumerate(archive.getmembers()) if i % 40 == 3 and "/train/" in member.name]
        archive.extractall(tmp_path, members=some, filter="data")
    source = open_source("imagenet", tmp_path / "tiny_imagenet40")
    assert len(source.class_names) == 40
    batch = batches_of(source, end=2, batch_size=64, workers=1)[1]
    assert batch.unreadable == []
    assert {tuple(size) for size in batch.sizes.tolist()} == {(64, 64)}
    assert all(image.float().std() > 3 for image in batch.images())
