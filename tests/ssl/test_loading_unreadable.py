"""Unreadable images are replaced by others, deterministically, and listed."""

import os

import pytest
import torch
from loading_helpers import IMAGES, assert_equal, batches_of

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.sampling import epoch_order
from polyscene.ssl.loading import UnreadableLog

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def damage(source, index: int, content: bytes = b"") -> None:
    source.path(index).write_bytes(content)


def test_replacements_are_the_same_for_any_workers_and_any_epoch(source):
    bad = (3, 8)
    for index in bad:
        damage(source, index)
    found = batches_of(source, end=15)
    replaced: dict[int, set[int]] = {index: set() for index in bad}
    for batch in found:
        wrong = [index for index in batch.indices.tolist() if index in bad]
        assert {index for index, _ in batch.unreadable} >= set(wrong)
        for index, shown, image, label in zip(
            batch.indices.tolist(), batch.shown.tolist(), batch.images(), batch.labels
        ):
            assert shown not in bad
            assert (shown == index) == (index not in bad)
            torch.testing.assert_close(image, read_image(source.path(shown)))
            assert label == source.labels[shown]
            if index in bad:
                replaced[index].add(shown)
    assert all(len(others) == 1 for others in replaced.values())
    for workers in (1, 4):
        for batch, same in zip(found, batches_of(source, end=15, workers=workers), strict=True):
            assert_equal(batch, same)


def test_unreadable_images_come_with_name_and_reason(source):
    damage(source, 3, b"<html>\n404</html>")
    entries = {entry for batch in batches_of(source, end=5) for entry in batch.unreadable}
    assert entries <= {(3, f"{source.name(3)}\tnot an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)")}


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_ends_with_one_line(source, workers):
    for index in range(IMAGES):
        damage(source, index)
    with pytest.raises(UserError, match=r"cannot be read \(the file is empty\), and neither can any of") as caught:
        batches_of(source, workers=workers)
    assert "\n" not in str(caught.value)


def test_a_deleted_image_is_unreadable(source):
    index = int(epoch_order(0, 0, IMAGES)[0])
    source.path(index).unlink()
    batch = batches_of(source, end=1)[0]
    assert "No such file" in dict(batch.unreadable)[index]


def test_the_log_lists_each_image_once_and_survives_a_restart(tmp_path):
    path = tmp_path / "unreadable_images.txt"
    log = UnreadableLog(path, 100, 0.03)
    assert not path.exists()
    log.add([])
    log.add([(4, "a/4.jpg\tthe file is empty"), (4, "a/4.jpg\tthe file is empty"), (5, "ä 5.jpg\ttruncated")])
    log.add([(4, "a/4.jpg\tthe file is empty")])
    expected = "a/4.jpg\tthe file is empty\nä 5.jpg\ttruncated\n"
    assert path.read_text() == expected
    again = UnreadableLog(path, 100, 0.03)
    assert len(again) == 2
    again.add([(5, "ä 5.jpg\ttruncated"), (6, "c.jpg\tbroken")])
    assert path.read_text() == expected + "c.jpg\tbroken\n"
    with pytest.raises(UserError, match=r"4 of 100 images \(4\.00%\) cannot be decoded, more than .*=0\.03") as caught:
        again.add([(7, "d.jpg\tbroken")])
    assert str(path) in str(caught.value)
    assert "d.jpg" in path.read_text(), "listed before the run ends"
    after_repair = UnreadableLog(path, 100, 0.03)
    after_repair.add([])  # nothing unreadable any more: no reason to stop


def test_the_share_of_no_tolerance(tmp_path):
    log = UnreadableLog(tmp_path / "list.txt", 1000, 0.0)
    log.add([])
    with pytest.raises(UserError, match="1 of 1000 images"):
        log.add([(0, "x\ty")])


def test_only_one_process_writes_but_all_count(tmp_path):
    silent = UnreadableLog(tmp_path / "list.txt", 10, 0.1, write=False)
    silent.add([(1, "a\tb")])
    assert not (tmp_path / "list.txt").exists()
    with pytest.raises(UserError, match="2 of 10"):
        silent.add([(2, "c\td")])


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\tbroken\nb.jp")
    log = UnreadableLog(path, 10, 0.5)
    assert log.names == {"a.jpg"}
    log.add([(2, "b.jpg\tbroken")])
    assert path.read_text() == "a.jpg\tbroken\nb.jpg\tbroken\n"


def test_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    UnreadableLog(tmp_path / "list.txt", 10, 0.5).add([(1, f"{name}\tbroken")])
    assert UnreadableLog(tmp_path / "list.txt", 10, 0.5).names == {name}
