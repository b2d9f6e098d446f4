"""The file of packed images: what was put in comes out, and nothing else is ever taken for it."""

import io
import os
import pickle
import zlib

import numpy as np
import pytest

from polyscene.runtime.errors import UserError
from polyscene.ssl.packed_cache import HEAD_BYTES, BadPack, ImagePack, PackedRun, write_pack

SIZES = [(3, 5), (1, 1), (0, 0), (4, 2), (7, 1)]


def images():
    return [np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8) for i, (h, w) in enumerate(SIZES)]


def runs(parts=((0, 2), (2, 5))):
    for first, last in parts:
        some = [image.reshape(-1) for image in images()[first:last]]
        yield PackedRun(
            pixels=np.concatenate(some),
            sizes=np.array(SIZES[first:last], dtype=np.int64),
            checksums=np.array([zlib.crc32(image) for image in some], dtype=np.uint32),
            reasons=["" if image.size else "the file is \udce9mpty" for image in some],
        )


@pytest.fixture
def path(tmp_path):
    with open(tmp_path / "images.pack", "wb") as file:
        write_pack(file, runs(), "abc")
    return tmp_path / "images.pack"


def damaged(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    other = path.with_name("damaged.pack")
    other.write_bytes(content)
    return other


def test_what_was_put_in_comes_out(path):
    pack = ImagePack(path, "abc")
    assert len(pack) == 5
    assert pack.sizes.tolist() == [list(size) for size in SIZES]
    assert pack.reasons == {2: "the file is \udce9mpty"}
    for index, image in enumerate(images()):
        np.testing.assert_array_equal(pack.image(index), image.reshape(-1))
        start, end = pack.extent(index)
        np.testing.assert_array_equal(pack.pixels[start:end], image.reshape(-1))
        assert start == pack.starts[index]
    assert pack.pixels.nbytes == sum(image.size for image in images())
    pack.prefetch(pack.extent(i) for i in range(5))


def test_the_file_does_not_depend_on_how_the_images_arrived(path):
    file = io.BytesIO()
    write_pack(file, runs(((0, 1), (1, 4), (4, 5))), "abc")
    assert file.getvalue() == path.read_bytes()


def test_images_are_views_of_the_file_and_cannot_be_written(path):
    pack = ImagePack(path, "abc")
    assert np.shares_memory(pack.image(0), pack.pixels)
    with pytest.raises(ValueError, match="read-only"):
        pack.image(0)[:] = 0


def test_a_pickle_is_the_name_of_the_file(path):
    pack = ImagePack(path, "abc", verify=False)
    content = pickle.dumps(pack)
    assert pack.pixels.tobytes() not in content
    again = pickle.loads(content)
    assert (again.path, again.verify) == (str(path), False)
    np.testing.assert_array_equal(again.image(4), pack.image(4))


def test_other_images_are_refused(path):
    with pytest.raises(BadPack, match="other images"):
        ImagePack(path, "abd")
    with pytest.raises(FileNotFoundError):
        ImagePack(path.with_name("missing"), "abc")


def test_a_flipped_bit_in_head_or_table_is_noticed(path):
    size = path.stat().st_size
    table = HEAD_BYTES + sum(3 * h * w for h, w in SIZES)
    positions = [*range(0, 300), *range(300, HEAD_BYTES, 97), HEAD_BYTES - 1, *range(table, size)]
    for position in positions:
        with pytest.raises(BadPack):
            ImagePack(damaged(path, position, position % 8), "abc")


def test_a_flipped_bit_in_an_image_is_noticed_when_it_is_read(path):
    start, end = ImagePack(path, "abc").extent(3)
    for position in (start, end - 1):
        pack = ImagePack(damaged(path, HEAD_BYTES + position), "abc")
        for index in (0, 1, 2, 4):
            np.testing.assert_array_equal(pack.image(index), images()[index].reshape(-1))
        for _ in range(2):
            with pytest.raises(UserError, match=r"damaged\.pack' is damaged: image 3 .* delete this file"):
                pack.image(3)


def test_a_file_of_another_length_is_refused(path, tmp_path):
    content = path.read_bytes()
    other = tmp_path / "other.pack"
    for length in (0, 1, 100, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 10, len(content) - 1):
        other.write_bytes(content[:length])
        with pytest.raises(BadPack):
            ImagePack(other, "abc")
    other.write_bytes(content + b"\0")
    with pytest.raises(BadPack, match="bytes instead of"):
        ImagePack(other, "abc")
    other.write_bytes(os.urandom(len(content)))
    with pytest.raises(BadPack, match="not a whole file"):
        ImagePack(other, "abc")


def test_writing_that_ends_early_leaves_no_pack(tmp_path):
    def broken():
        yield from runs(((0, 2),))
        raise KeyboardInterrupt

    path = tmp_path / "half.pack"
    with open(path, "wb") as file, pytest.raises(KeyboardInterrupt):
        write_pack(file, broken(), "abc")
    assert path.stat().st_size > HEAD_BYTES
    with pytest.raises(BadPack):
        ImagePack(path, "abc")


def test_no_images_at_all(tmp_path):
    with open(tmp_path / "none.pack", "wb") as file:
        write_pack(file, [], "x")
    assert len(ImagePack(tmp_path / "none.pack", "x")) == 0
