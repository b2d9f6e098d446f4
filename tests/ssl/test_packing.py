"""Images on their way into a pack: decoded as always, reduced as PIL does, told from other versions of themselves."""

import errno
import io
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage, read_image
from polyscene.ssl import packing
from polyscene.ssl.packed_cache import ImagePack
from polyscene.ssl.packing import RUN, expected_bytes, pack_source, reduce_image, source_identity, stored_size
from polyscene.ssl.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(8, 1000))
def test_stored_sizes(height, width, side):
    stored = stored_size(height, width, side)
    if min(height, width) <= side:
        assert stored == (height, width)
    else:
        assert min(stored) == side
        assert stored[0] == pytest.approx(height * side / min(height, width), abs=0.5)
        assert stored[1] == pytest.approx(width * side / min(height, width), abs=0.5)
    assert stored == stored_size(width, height, side)[::-1]


@pytest.mark.parametrize("size", [(60, 47), (47, 60), (200, 31), (33, 31)])
def test_reducing_is_pillows_bilinear_filter(size):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    photo = photo.resize(size, Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    reduced = reduce_image(image, 30)
    assert min(reduced.shape[1:]) == 30
    expected = np.array(photo.resize(tuple(reduced.shape[:0:-1]), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(reduced.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_small_images_stay_as_they_are():
    image = torch.zeros(3, 30, 99, dtype=torch.uint8)
    assert reduce_image(image, 30) is image


@pytest.fixture
def photos(tmp_path):
    """More images than a worker sends at a time; among them unreadable, rotated, grey and small ones."""
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    for i in range(RUN + 5):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i % 7, 30 - i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "a" / f"{i:02}.png")
    (root / "a" / "03.png").write_bytes(b"")
    (root / "a" / "34.png").write_bytes((root / "a" / "04.png").read_bytes()[:200])
    os.symlink("nowhere.png", root / "a" / "99.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "a" / "50.jpg", exif=exif)
    Image.fromarray(pixels[:9, :, 0]).save(root / "a" / "51.jpg")
    return open_source("folder", root)


def pack_of(source, path, side=18, workers=0):
    done = []
    with open(path, "wb") as file:
        pack_source(file, source, "id", side, workers=workers, progress=done.append)
    assert done[-1] == len(source)
    assert done == sorted(done)
    return ImagePack(path, "id")


def test_a_pack_holds_what_reading_the_files_gives(photos, tmp_path):
    pack = pack_of(photos, tmp_path / "pack")
    assert len(pack) == len(photos)
    for index in range(len(photos)):
        if index in pack.reasons:
            with pytest.raises(UnreadableImage) as caught:
                read_image(photos.path(index))
            assert pack.reasons[index] == caught.value.reason
            assert pack.image(index).size == 0
        else:
            expected = reduce_image(read_image(photos.path(index)), 18)
            assert tuple(pack.sizes[index]) == expected.shape[1:]
            np.testing.assert_array_equal(pack.image(index), expected.permute(1, 2, 0).reshape(-1).numpy())
    assert [photos.name(i) for i in pack.reasons] == ["a/03.png", "a/34.png", "a/99.png"]


def test_workers_write_the_same_file(photos, tmp_path):
    pack_of(photos, tmp_path / "one", workers=0)
    pack_of(photos, tmp_path / "other", workers=2)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_expected_size(photos, tmp_path):
    pack = pack_of(photos, tmp_path / "pack")
    readable = len(photos) - len(pack.reasons)
    # "34.png" has a header (that of "04.png") and no pixels; all others are looked at.
    header = 3 * np.prod(stored_size(24, 26, 18))
    expected = (len(pack.pixels) + header) / (readable + 1) * len(photos)
    assert expected_bytes(photos, 18) == pytest.approx(expected + 4096, abs=2)


def test_a_disk_that_fails_does_not_make_images_unreadable_for_ever(photos, tmp_path, monkeypatch):
    def read(path):
        if path.name == "07.png":
            raise UnreadableImage(str(path), "Input/output error") from OSError(errno.EIO, "Input/output error")
        return read_image(path)

    monkeypatch.setattr(packing, "read_image", read)
    with pytest.raises(UserError, match=r"07\.png.*Input/output error; .*check the disk") as caught:
        pack_source(io.BytesIO(), photos, "id", 18, workers=0, progress=lambda done: None)
    assert "\n" not in str(caught.value)


class FullDisk(io.BytesIO):
    def write(self, data):
        if self.tell() > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_no_worker_outlives_a_full_disk(photos):
    with pytest.raises(OSError, match="No space left") as caught:
        pack_source(FullDisk(), photos, "id", 384, workers=2, progress=lambda done: None)
    assert caught.traceback  # holding on to it holds on to nothing else
    assert multiprocessing.active_children() == []


def test_the_identity_tells_versions_of_files_apart(photos, tmp_path):
    first = source_identity(photos, 18)
    assert source_identity(photos, 18) == first
    assert source_identity(photos, 19) != first
    path = photos.path(8)
    status, content = path.stat(), path.read_bytes()

    path.write_bytes(content + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_identity(photos, 18) != first, "another size, the same time"
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert source_identity(photos, 18) != first, "another time, the same size"
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_identity(photos, 18) == first
    photos.path(9).unlink()
    assert source_identity(photos, 18) != first, "gone, though the list still names it"


def test_the_identity_is_that_of_a_copy_which_keeps_its_times(photos, tmp_path):
    shutil.copytree(photos.root, tmp_path / "copy", symlinks=True)
    assert source_identity(open_source("folder", tmp_path / "copy"), 18) == source_identity(photos, 18)
    fewer = open_source("folder", tmp_path / "copy", subset=10)
    assert source_identity(fewer, 18) != source_identity(photos, 18)
