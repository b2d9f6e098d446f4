"""Which files belong to a retrieval, and what is said when some are missing."""

import pytest

from polyscene.downstream.segments.data import image_folder, voc2012, with_saliency
from polyscene.runtime.errors import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def voc(tmp_path):
    """A VOC 2012 layout: train = a, b; val = c."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in "abc":
        touch(base / "JPEGImages" / f"{stem}.jpg", base / "SegmentationClass" / f"{stem}.png")
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    return base


def augment(base, name):
    touch(base / "JPEGImages" / "d.jpg")
    for stem in "abcd":
        touch(base / "SegmentationClassAug" / f"{stem}.png")
    (base / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("a\nb\nd\n")


@pytest.fixture
def folder(tmp_path):
    """Frames of two sequences and of a sub-folder, with labels."""
    for stem in ("s1_1", "s1_2", "s2_1", "town/t_1"):
        touch(tmp_path / "images" / f"{stem}.jpg", tmp_path / "labels" / f"{stem}.png")
    return tmp_path


def open_folder(root, train="s1*", test="s2*", **more):
    return image_folder(root / "images", root / "labels", train, test, **more)


def test_voc_lists(voc, tmp_path):
    for root in (tmp_path, tmp_path / "VOCdevkit", voc):
        train, test = voc2012(root)
        assert train.stems == ("a", "b")
        assert test.stems == ("c",)
        assert train.labels[1] == voc / "SegmentationClass" / "b.png"


@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_voc_augmented_training_set_is_preferred(voc, name):
    augment(voc, name)
    train, test = voc2012(voc)
    assert train.stems == ("a", "b", "d")
    assert train.labels[2] == voc / "SegmentationClassAug" / "d.png"
    assert test.labels[0] == voc / "SegmentationClass" / "c.png"
    assert voc2012(voc, train="train")[0].stems == ("a", "b")


def test_voc_errors(voc, tmp_path):
    with pytest.raises(UserError, match=r"VOCtrainval"):
        voc2012(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data.train.*'.*minival.txt' does not exist; lists there: train, val"):
        voc2012(voc, train="minival")
    with pytest.raises(UserError, match=r"'a' is in both"):
        voc2012(voc, test="train")
    augment(voc, "train_aug")
    (voc / "SegmentationClassAug" / "d.png").unlink()
    with pytest.raises(UserError, match=r"mask '.*d.png' is missing \(1 of 3"):
        voc2012(voc)
    (voc / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"image '.*b.jpg' is missing"):
        voc2012(voc)


def test_voc_list_without_its_masks(voc):
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("a\n")
    with pytest.raises(UserError, match="SegmentationClassAug"):
        voc2012(voc)


def test_folder_by_patterns_folders_and_lists(folder):
    train, test = open_folder(folder, ("s1*", "town"), "s2_1")
    assert train.stems == ("s1_1", "s1_2", "town/t_1")
    assert train.labels[2] == folder / "labels" / "town" / "t_1.png"
    assert test.stems == ("s2_1",)
    names = folder / "list.txt"
    names.write_text("s1_2.jpg\n\ntown/t_1\n")
    assert open_folder(folder, str(names))[0].stems == ("s1_2", "town/t_1")


def test_cityscapes_names(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / "images" / split / "ulm" / f"{split}_leftImg8bit.png")
        touch(tmp_path / "labels" / split / "ulm" / f"{split}_gtFine_labelTrainIds.png")
        touch(tmp_path / "labels" / split / "ulm" / f"{split}_gtFine_color.png")
    suffixes = {"image_suffix": "_leftImg8bit", "label_suffix": "_gtFine_labelTrainIds"}
    train, test = open_folder(tmp_path, "train", "val", **suffixes)
    assert train.stems == ("train/ulm/train",)
    assert test.labels[0].name == "val_gtFine_labelTrainIds.png"


def test_folder_errors(folder):
    with pytest.raises(UserError, match=r"data.test: no image of '.*' fits 's3\*'"):
        open_folder(folder, test="s3*")
    with pytest.raises(UserError, match=r"data.train: the list 'no.txt' does not exist"):
        open_folder(folder, "no.txt")
    with pytest.raises(UserError, match=r"'s1_1' is in both data.train and data.test \(2 such"):
        open_folder(folder, test=("s1*", "s2*"))
    with pytest.raises(UserError, match=r"data.labels='.*nowhere' is not a folder"):
        image_folder(folder / "images", folder / "nowhere", "s1*", "s2*")
    with pytest.raises(UserError, match=r"data.images='.*' holds no images \(\*_left.jpg"):
        open_folder(folder, image_suffix="_left")
    names = folder / "list.txt"
    names.write_text("s9\n")
    with pytest.raises(UserError, match=r"names 's9', which is not among the images"):
        open_folder(folder, str(names))
    names.write_text("\n")
    with pytest.raises(UserError, match=r"is empty"):
        open_folder(folder, str(names))


def test_image_without_mask_and_mask_without_image(folder):
    (folder / "labels" / "s1_2.png").unlink()
    with pytest.raises(UserError, match=r"image '.*s1_2.jpg' has no mask '.*s1_2.png'; .* data.train"):
        open_folder(folder)
    touch(folder / "labels" / "s1_2.png", folder / "labels" / "s2_9.png")
    with pytest.raises(UserError, match=r"mask '.*s2_9.png' has no image"):
        open_folder(folder)
    # A mask outside the chosen sets disturbs nobody.
    assert open_folder(folder, test="s2_1")[1].stems == ("s2_1",)


def test_two_images_of_one_name(folder):
    touch(folder / "images" / "s1_1.png")
    with pytest.raises(UserError, match="same name"):
        open_folder(folder)


def test_saliency_maps_must_be_complete(folder):
    train, _ = open_folder(folder)
    with pytest.raises(UserError, match=r"data.saliency='.*' is not a folder"):
        with_saliency(train, folder / "saliency")
    touch(folder / "saliency" / "s1_1.png")
    with pytest.raises(UserError, match=r"saliency map '.*s1_2.png' is missing \(1 of 2"):
        with_saliency(train, folder / "saliency")
    touch(folder / "saliency" / "s1_2.png")
    assert [p.name for p in with_saliency(train, folder / "saliency").saliency] == ["s1_1.png", "s1_2.png"]
