"""Label maps as numbers, sizes, and what is said about files that do not fit."""

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.segments.data import LabelScheme, Pairs
from polyscene.downstream.segments.loading import batches, read_labels, read_salient, resize_nearest
from polyscene.runtime.errors import UserError

SCHEME = LabelScheme(("sky", "road", "car"), (255, 7))


def save(path, values, mode=None, palette=False):
    image = Image.fromarray(np.asarray(values)) if mode is None else Image.fromarray(np.asarray(values)).convert(mode)
    if palette:
        image.putpalette([200, 10, 10] * 256)
    image.save(path)
    return path


@pytest.mark.parametrize("palette", [False, True])
def test_values_not_colours_are_read(tmp_path, palette):
    values = np.array([[0, 1, 2], [255, 7, 0]], dtype=np.uint8)
    path = save(tmp_path / "a.png", values, palette=palette)
    assert Image.open(path).mode == ("P" if palette else "L")
    assert read_labels(path, SCHEME).tolist() == [[0, 1, 2], [3, 3, 0]]


def test_sixteen_bit_labels(tmp_path):
    scheme = LabelScheme(tuple(str(i) for i in range(400)), (65535,))
    path = save(tmp_path / "a.png", np.array([[0, 399], [65535, 256]], dtype=np.uint16))
    assert read_labels(path, scheme).tolist() == [[0, 399], [400, 256]]


def test_bad_label_files(tmp_path):
    wrong = save(tmp_path / "w.png", np.array([[0, 9], [3, 3]], dtype=np.uint8))
    with pytest.raises(UserError, match=r"w.png' holds the value 3, 9, but data.classes names 3 classes \(0 to 2\)"):
        read_labels(wrong, SCHEME)
    coloured = save(tmp_path / "c.png", np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"c.png' holds colours \(mode RGB\)"):
        read_labels(coloured, SCHEME)
    (tmp_path / "t.png").write_bytes(b"text")
    with pytest.raises(UserError, match="not a PNG"):
        read_labels(tmp_path / "t.png", SCHEME)
    whole = save(tmp_path / "r.png", np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)).read_bytes()
    (tmp_path / "r.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read the PNG '.*r.png'"):
        read_labels(tmp_path / "r.png", SCHEME)


def test_saliency_threshold_is_one_half(tmp_path):
    grey = save(tmp_path / "g.png", np.array([[0, 127, 128, 255]], dtype=np.uint8))
    assert read_salient(grey).tolist() == [[False, False, True, True]]
    binary = save(tmp_path / "b.png", np.array([[0, 1, 1, 0]], dtype=np.uint8))
    assert read_salient(binary).tolist() == [[False, True, True, False]]


def test_nearest_takes_the_pixel_under_the_centre():
    values = np.arange(24).reshape(4, 6)
    assert resize_nearest(values, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert (resize_nearest(values, (8, 12)) == values.repeat(2, 0).repeat(2, 1)).all()
    assert (resize_nearest(values, (4, 6)) == values).all()


@pytest.fixture
def pairs(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 10 * i, dtype=np.uint8)).save(tmp_path / f"{i}.bmp")
        save(tmp_path / f"{i}.png", np.full((20, 30), i, dtype=np.uint8))
    stems = tuple("012")
    return Pairs(stems, tuple(tmp_path / f"{s}.bmp" for s in stems), tuple(tmp_path / f"{s}.png" for s in stems))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_keep_order_and_size(pairs, workers):
    found = list(batches(pairs, SCHEME, size=(16, 8), batch_size=2, workers=workers))
    assert [tuple(b.images.shape) for b in found] == [(2, 3, 16, 8), (1, 3, 16, 8)]
    assert [int(v) for b in found for v in b.labels[:, 3, 3]] == [0, 1, 2]
    assert [int(v) for b in found for v in b.images[:, 0, 3, 3]] == [0, 10, 20]
    assert all(b.salient is None for b in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_size_mismatch_is_one_line(pairs, workers):
    save(pairs.labels[1], np.zeros((30, 20), dtype=np.uint8))
    with pytest.raises(UserError, match=r"1.png' has 20 x 30 pixels and its image '.*1.bmp' 30 x 20"):
        list(batches(pairs, SCHEME, size=(16, 8), batch_size=2, workers=workers))


def test_unreadable_image_is_one_line(pairs):
    pairs.images[2].write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read image '.*2.bmp'"):
        list(batches(pairs, SCHEME, size=(16, 8), batch_size=2, workers=0))
