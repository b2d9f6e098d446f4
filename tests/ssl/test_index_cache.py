"""The index of a searched tree is used again as long as nothing changed."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from polyscene.runtime.errors import UserError
from polyscene.ssl import index_cache, sources
from polyscene.ssl.index_cache import INDEX_NAME
from polyscene.ssl.sources import ImageSource, open_source


def age(root: Path) -> None:
    """Make a tree look as if nobody had touched it for a minute."""
    past = time.time() - 60
    for folder, _, _ in os.walk(root):
        os.utime(folder, (past, past))


def names(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An old tree, and an `open` that also says whether the tree was searched."""
    root = tmp_path / "data"
    for folder in "abc":
        (root / folder).mkdir(parents=True)
        for i in range(5):
            (root / folder / f"{i}.jpg").touch()
    age(root)
    searched = []
    real = sources.scan_images
    monkeypatch.setattr(sources, "scan_images", lambda *args: searched.append(1) or real(*args))

    def open_again(**options) -> tuple[ImageSource, bool]:
        searched.clear()
        options = {"kind": "folder", "root": root, "cache_dir": tmp_path / "run", **options}
        return open_source(options.pop("kind"), options.pop("root"), **options), bool(searched)

    return root, open_again


def test_cache_gives_the_same_images(cached):
    _, open_again = cached
    for options in ({}, {"subset": 7, "seed": 3}):
        first, searched = open_again(**options)
        assert searched
        second, searched = open_again(**options)
        assert not searched
        assert names(first) == names(second)
        assert first.class_names == second.class_names == ("a", "b", "c")
        np.testing.assert_array_equal(first.labels, second.labels)
        assert first.fingerprint() == second.fingerprint()
    assert open_again(subset=7, seed=4)[1], "another seed is another subset"


def test_cache_without_labels(cached, tmp_path):
    root, open_again = cached
    open_again(root=root / "a")
    source, searched = open_again(root=root / "a")
    assert not searched
    assert source.labels is None
    assert source.class_names is None


def test_changes_of_the_tree_are_noticed(cached):
    root, open_again = cached
    before = open_again()[0]
    (root / "b/new.jpg").touch()
    after, searched = open_again()
    assert searched
    assert len(after) == len(before) + 1
    assert before.fingerprint() != after.fingerprint()
    age(root)
    open_again()
    assert not open_again()[1]
    (root / "c/1.jpg").unlink()
    assert open_again()[1]
    (root / "a").rename(root / "z")
    assert open_again()[0].class_names == ("b", "c", "z")


def test_a_tree_that_may_still_change_is_not_cached(cached, tmp_path):
    root, open_again = cached
    os.utime(root / "a")
    assert open_again()[1]
    assert not (tmp_path / "run" / INDEX_NAME).exists()
    assert open_again()[1]


def test_changes_of_a_list_are_noticed(cached, tmp_path):
    _, open_again = cached
    listing = tmp_path / "list.txt"
    listing.write_text("a/1.jpg\n")
    assert names(open_again(list_file=listing)[0]) == ["a/1.jpg"]
    assert (tmp_path / "run" / INDEX_NAME).exists()
    listing.write_text("a/1.jpg\nb/1.jpg\n")
    assert names(open_again(list_file=listing)[0]) == ["a/1.jpg", "b/1.jpg"]
    (tmp_path / "data/b/1.jpg").unlink()
    with pytest.raises(UserError, match="do not exist"):
        open_again(list_file=listing)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half an archive"])
def test_damaged_cache_is_ignored(cached, tmp_path, content):
    _, open_again = cached
    expected = names(open_again()[0])
    (tmp_path / "run" / INDEX_NAME).write_bytes(content)
    source, searched = open_again()
    assert searched
    assert names(source) == expected
    assert not open_again()[1], "and replaced"


def test_cache_holds_no_pickles(cached, tmp_path):
    _, open_again = cached
    open_again()
    file = tmp_path / "run" / INDEX_NAME
    with np.load(file, allow_pickle=False) as saved:
        assert all(saved[name].dtype != object for name in saved.files)
    np.savez(file, header=np.array([object()], dtype=object))
    assert open_again()[1], "an index with a pickle inside is refused"


def test_unwritable_cache(cached, tmp_path, monkeypatch):
    _, open_again = cached

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_cache.np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write '.*image_index\.npz': No space left"):
        open_again()
    assert list((tmp_path / "run").iterdir()) == []
