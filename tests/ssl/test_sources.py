"""Miniature trees in the layouts that the data sets are published in. Files are empty: nothing here decodes."""

import os
from pathlib import Path

import numpy as np
import pytest

from polyscene.runtime.errors import UserError
from polyscene.ssl.layouts import KINDS
from polyscene.ssl.sources import ImageSource, open_source


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def classes(source: ImageSource) -> list[str]:
    return [source.class_names[label] for label in source.labels]


TREES = {
    "coco": ["train2017/000000000009.jpg", "train2017/000000000025.jpg", "val2017/000000000139.jpg"],
    "openimages": ["train/0001.jpg", "train/0002.jpg", "validation/0003.jpg"],
    "bdd100k": [f"images/100k/{split}/{i}.jpg" for split in ("train", "val", "test") for i in (1, 2)],
    "imagenet": [f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in ("n01440764", "n01443537") for i in (1, 2)],
}


@pytest.fixture
def tree(tmp_path, request):
    """A tree of each kind, with the files that lie beside the images."""
    kind = request.param
    beside = ["annotations/instances_train2017.json", "README.txt", ".cache/x.jpg", "labels/train/a.png"]
    return kind, plant(tmp_path / "data", *TREES[kind], *beside)


@pytest.mark.parametrize("tree", TREES, indirect=True)
def test_published_layouts(tree):
    kind, root = tree
    source = open_source(kind, root)
    expected = [name for name in TREES[kind] if "train" in name]
    assert names(source) == sorted(expected)
    assert source.path(0) == root / expected[0]
    assert all(source.path(i).is_file() for i in range(len(source)))
    if kind == "imagenet":
        assert source.class_names == ("n01440764", "n01443537")
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == [0, 0, 1, 1]
    else:
        assert source.labels is None
        assert source.class_names is None


def test_kinds_are_complete():
    assert set(KINDS) == {"folder", *TREES}


@pytest.mark.parametrize("tree", TREES, indirect=True)
def test_root_one_level_too_high(tree):
    kind, root = tree
    source = open_source(kind, root.parent)
    assert names(source) == ["data/" + name for name in names(open_source(kind, root))]


@pytest.mark.parametrize("tree", TREES, indirect=True)
def test_root_one_level_too_low(tree):
    kind, root = tree
    top = sorted(TREES[kind])[0].split("/")[0]
    low = open_source(kind, root / top)
    assert [low.path(i) for i in range(len(low))] == [root / name for name in names(open_source(kind, root))]
    if kind == "imagenet":
        assert classes(low) == classes(open_source(kind, root))


def test_bdd_root_may_be_the_innermost_folder(tmp_path):
    plant(tmp_path, *TREES["bdd100k"])
    assert names(open_source("bdd100k", tmp_path / "images/100k/val", splits=("val",))) == ["1.jpg", "2.jpg"]


def test_a_folder_beside_the_images_is_not_taken_for_a_root_too_low(tmp_path):
    plant(tmp_path, *TREES["coco"], "annotations/x.json")
    with pytest.raises(UserError, match="does not look like coco"):
        open_source("coco", tmp_path / "annotations")


def test_several_data_sets_below_the_root(tmp_path):
    plant(tmp_path, "coco_a/train2017/1.jpg", "coco_b/train2017/1.jpg")
    with pytest.raises(UserError, match=r"several coco data sets \(.*coco_a, .*coco_b\)"):
        open_source("coco", tmp_path)


def test_wrong_layout_says_what_was_looked_for_and_found(tmp_path):
    plant(tmp_path, "train/a.jpg", "notes.txt")
    with pytest.raises(UserError, match=r"looked for 'train2017/', found 'notes.txt', 'train/'") as caught:
        open_source("coco", tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="found an empty folder"):
        open_source("bdd100k", tmp_path / "nothing")


def test_openimages_in_sixteen_parts(tmp_path):
    parts = [f"train_{digit}/{digit}000.jpg" for digit in "0123456789abcdef"]
    assert names(open_source("openimages", plant(tmp_path, *parts))) == parts
    plant(tmp_path, "train/0001.jpg")
    with pytest.raises(UserError, match="holds 'train' and 'train_0'"):
        open_source("openimages", tmp_path)


def test_bdd_splits(tmp_path):
    root = plant(tmp_path, *TREES["bdd100k"])
    assert len(open_source("bdd100k", root, splits=("train", "val"))) == 4
    assert len(open_source("bdd100k", root, splits=["test", "val", "train"])) == 6
    with pytest.raises(UserError, match="no split 'trainval'; choose from train, val, test"):
        open_source("bdd100k", root, splits=("trainval",))
    (root / "images/100k/val").rename(root / "images/100k/dev")
    with pytest.raises(UserError, match="'images/100k/train/' and 'images/100k/val/'"):
        open_source("bdd100k", root, splits=("train", "val"))


def test_imagenet_image_beside_the_classes(tmp_path):
    plant(tmp_path, *TREES["imagenet"], "train/stray.JPEG")
    with pytest.raises(UserError, match=r"stray\.JPEG' lies beside the class folders"):
        open_source("imagenet", tmp_path)


def test_imagenet_classes_may_have_sub_folders(tmp_path):
    plant(tmp_path, "train/n1/images/a.JPEG", "train/n2/images/b.JPEG")
    assert open_source("imagenet", tmp_path).class_names == ("n1", "n2")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.jpg", "b/1.jpg", "b/2.png"], ["a", "b", "b"]),
        (["images/a/1.jpg", "images/b/1.jpg"], ["a", "b"]),
        (["x/y/a/1.jpg", "x/y/b/c/1.jpg"], ["a", "b/c"]),
        (["a/1.jpg", "a/b/1.jpg"], ["a", "a/b"]),
        (["ab/1.jpg", "ac/1.jpg"], ["ab", "ac"]),
        (["a/1.jpg", "a/2.jpg"], None),
        (["a/1.jpg", "b/1.jpg", "1.jpg"], None),
        (["1.jpg", "2.jpg"], None),
    ],
)
def test_labels_of_a_folder(tmp_path, files, expected):
    source = open_source("folder", plant(tmp_path, *files))
    assert names(source) == sorted(files)
    if expected is None:
        assert source.labels is None
        assert source.class_names is None
    else:
        assert classes(source) == expected


def test_suffixes_hidden_files_and_metadata(tmp_path):
    images = ["a.JPG", "b.jpeg", "c.PNG", "d.webp", "e.tif", "f.bmp", "deep/er/g.Jpeg", "weird.jpg.png", "h i\tj.jpg"]
    others = [".hidden.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "deep/__MACOSX/._a.jpg", "deep/._g.jpg", "x.txt", "jpg"]
    source = open_source("folder", plant(tmp_path, *images, *others))
    assert names(source) == sorted(images)


def test_folders_pipes_and_links(tmp_path):
    plant(tmp_path, "folder.jpg/inside.jpg", "other/real.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("other/real.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")  # kept: the run will list it as unreadable
    found = names(open_source("folder", tmp_path))
    assert found == ["broken.jpg", "folder.jpg/inside.jpg", "link.jpg", "other/real.jpg"]


def test_link_loops_end_and_real_names_win(tmp_path):
    root = plant(tmp_path / "root", "m/1.jpg", "z/2.jpg")
    outside = plant(tmp_path / "outside", "3.jpg")
    (root / "a_loop").symlink_to(root)
    (root / "m" / "up").symlink_to("..")
    (root / "m" / "sideways").symlink_to("../z")
    (root / "z" / "sideways").symlink_to("../m")
    (root / "b").symlink_to(outside)
    (root / "c").symlink_to(outside)
    (outside / "back").symlink_to(root)
    assert names(open_source("folder", root)) == ["b/3.jpg", "m/1.jpg", "z/2.jpg"]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    files = [f"{a}/{b}.jpg" for a in ("B", "a", "ä", "a-b", "a.b") for b in ("2", "10", "Z", "é")]
    root = plant(tmp_path, *files)
    expected = sorted(files, key=os.fsencode)
    assert names(open_source("folder", root)) == expected
    real = os.scandir

    class Backwards:
        def __init__(self, path):
            self.entries = sorted(real(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(open_source("folder", root)) == expected


def test_names_that_are_not_unicode(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system refuses such names")
    source = open_source("folder", tmp_path, cache_dir=tmp_path / "run")
    assert source.path(0).is_file()


def test_faults_of_the_root(tmp_path):
    with pytest.raises(UserError, match=r"'.*/no/such' does not exist \('.*' does\)"):
        open_source("folder", tmp_path / "no/such")
    plant(tmp_path, "photos.zip", "empty/readme.md")
    with pytest.raises(UserError, match="is a file"):
        open_source("folder", tmp_path / "photos.zip")
    with pytest.raises(UserError, match=r"no images in '.*empty': 1 other files"):
        open_source("folder", tmp_path / "empty")
    with pytest.raises(UserError, match="unknown kind of images 'cocco'; choose one of folder, coco"):
        open_source("cocco", tmp_path)
    with pytest.raises(UserError, match="mean nothing for kind 'folder'"):
        open_source("folder", tmp_path, splits=("val",))


def test_unreadable_folder(tmp_path, monkeypatch):
    root = plant(tmp_path, "a/1.jpg", "secret/2.jpg")
    real = os.scandir

    def scandir(path):
        if os.fsencode(path).endswith(b"secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot read folder '.*secret': Permission denied; give yourself access"):
        open_source("folder", root)


# Lists


def test_list_of_images(tmp_path):
    root = plant(tmp_path / "data", "x/b.jpg", "x/a.jpg", "y/c.jpg", "y/d.anything")
    elsewhere = plant(tmp_path / "elsewhere", "e.jpg") / "e.jpg"
    listing = tmp_path / "list.txt"
    listing.write_bytes(
        b"\xef\xbb\xbfy/d.anything\r\n\r\n# a comment\r\n  x/b.jpg \r\n"
        + os.fsencode(elsewhere)
        + b"\r\n./x/../x/a.jpg"
    )
    source = open_source("coco", root, list_file=listing)
    assert sorted(source.path(i) for i in range(4)) == sorted(
        [root / "x/a.jpg", root / "x/b.jpg", root / "y/d.anything", elsewhere]
    )
    assert source.labels is None
    assert len(open_source("coco", root, list_file=listing, subset=2)) == 2


def test_list_with_classes(tmp_path):
    root = plant(tmp_path, *TREES["imagenet"])
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(reversed(TREES["imagenet"])))
    source = open_source("imagenet", root, list_file=listing)
    assert names(source) == sorted(TREES["imagenet"])
    assert classes(source) == ["n01440764"] * 2 + ["n01443537"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a/1.jpg\na/gone.jpg\nb/2.jpg\n", r"2 of 3 images do not exist, the first is 'a/gone\.jpg'"),
        ("a", "1 of 1 images do not exist"),
        ("a/1.jpg\na/./1.jpg\n", "more than once"),
        ("# nothing\n\n", "names no images"),
    ],
)
def test_faults_of_a_list(tmp_path, content, message):
    root = plant(tmp_path / "data", "a/1.jpg")
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source("folder", root, list_file=tmp_path / "list.txt")
    assert "list.txt" in str(caught.value)


def test_missing_list(tmp_path):
    with pytest.raises(UserError, match=r"cannot read image list '.*none\.txt': No such file"):
        open_source("folder", tmp_path, list_file=tmp_path / "none.txt")


# Subsets


def test_subset_depends_on_the_seed_only(tmp_path):
    root = plant(tmp_path, *(f"train/{i:04}.jpg" for i in range(200)))
    one = names(open_source("openimages", root, subset=50, seed=1))
    assert one == sorted(one)
    assert len(set(one)) == 50
    assert one == names(open_source("openimages", root, subset=50, seed=1))
    assert one != names(open_source("openimages", root, subset=50, seed=2))
    assert set(one) < set(names(open_source("openimages", root, subset=60, seed=1)))
    for impossible in (0, 201):
        with pytest.raises(UserError, match=f"subset={impossible}: must be between 1 and the 200 images"):
            open_source("openimages", root, subset=impossible)


def test_imagenet_subsets(tmp_path):
    root = plant(tmp_path, *(f"train/n{c}/{i:03}.JPEG" for c in range(10) for i in range(40)))
    uniform = open_source("imagenet", root, subset=100)
    assert np.bincount(uniform.labels).tolist() == [10] * 10
    tailed = open_source("imagenet", root, subset=100, long_tailed=True, seed=3)
    assert len(tailed) == 100
    assert np.bincount(tailed.labels).max() > 20
    assert [name.split("/")[1] for name in names(tailed)] == classes(tailed)


def test_long_tail_needs_a_size_and_classes(tmp_path):
    root = plant(tmp_path, *TREES["coco"])
    with pytest.raises(UserError, match="needs its size"):
        open_source("coco", root, long_tailed=True)
    with pytest.raises(UserError, match="needs classes, and these images of kind 'coco' have none"):
        open_source("coco", root, long_tailed=True, subset=2)
