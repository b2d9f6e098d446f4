"""Layouts of labelled images: what is read from each, in which order, and what is refused."""

import json
import os
import pickle

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from polyscene.downstream.frozen.datasets import LabelledImages, align_classes
from polyscene.downstream.frozen.images import ImageFiles, ImageObjects, LabelledPixels
from polyscene.downstream.frozen.multi_label import open_multi_label, read_labels_csv
from polyscene.downstream.frozen.torchvision_sets import LAYOUTS, open_torchvision
from polyscene.downstream.frozen.voc2007 import open_voc2007
from polyscene.runtime.errors import UserError


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(data):
    return [os.path.basename(path) for path in data.images]


# ------------------------------------------------------------------------------------------------- VOC 2007


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("000001", "000002", "000003"):
        picture(base / "JPEGImages" / f"{name}.jpg")
    main = base / "ImageSets" / "Main"
    write(main / "trainval.txt", "000001\n000002\n")
    write(main / "car_trainval.txt", "000001  1\n000002  0\n")
    write(main / "person_trainval.txt", "000002 -1\n000001 -1\n")
    write(main / "test.txt", "000003\n")
    write(main / "car_test.txt", "000003 -1\n")
    write(main / "person_test.txt", "000003  1\n")
    return tmp_path


def test_voc_flags_and_difficult_objects(voc):
    train, test = open_voc2007(voc, "trainval"), open_voc2007(voc, "test")
    assert train.class_names == test.class_names == ("car", "person")
    assert names(train) == ["000001.jpg", "000002.jpg"]
    assert train.targets.tolist() == [[1, -1], [0, -1]]
    assert test.targets.tolist() == [[-1, 1]]
    assert train.one_vs_rest() is train.targets
    # One or two levels lower is found too.
    assert open_voc2007(voc / "VOCdevkit" / "VOC2007", "test").targets.tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("trainval.txt", None, "data.download"),
        ("trainval.txt", "", "lists no image"),
        ("car_trainval.txt", "000001 1\n", "'000002' is in this list or in the split's, not in both"),
        ("car_trainval.txt", "000001 1\n000002 2\n", "'000002 2' is not 'IMAGE 1'"),
    ],
)
def test_voc_refusals(voc, file, text, message):
    path = voc / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_voc2007(voc, "trainval")
    assert "\n" not in str(caught.value)


def test_voc_without_its_class_lists_or_images(voc):
    main = voc / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (voc / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000002.jpg").unlink()
    with pytest.raises(UserError, match=r"000002.jpg' is listed but cannot be read"):
        open_voc2007(voc, "trainval").images.fingerprint()
    for file in main.glob("*_trainval.txt"):
        file.unlink()
    with pytest.raises(UserError, match="no CLASS_trainval.txt"):
        open_voc2007(voc, "trainval")


# ------------------------------------------------------------------------------------------------- labels.csv


def multi(folder, text, images=("a.jpg", "b/c.jpg")):
    for name in images:
        picture(folder / name)
    write(folder / "labels.csv", text)
    return open_multi_label(folder, sorted(images))


def test_labels_csv(tmp_path):
    data = multi(tmp_path, "file,labels\nb/c.jpg,\na.jpg, cat dog ?cow\n")
    assert data.class_names == ("cat", "cow", "dog")
    assert data.targets.tolist() == [[1, 0, 1], [-1, -1, -1]]
    assert data.targets.dtype == torch.int8
    assert names(data) == ["a.jpg", "c.jpg"]


def test_semicolons_allow_spaces_in_names(tmp_path):
    write(tmp_path / "labels.csv", '\ufefffile,labels\n"a, b.jpg",potted plant; ?cat\nc.jpg,dining table\n')
    assert read_labels_csv(tmp_path / "labels.csv") == {
        "a, b.jpg": ["potted plant", "?cat"],
        "c.jpg": ["dining table"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,cat\n", "the first line must be 'file,labels'"),
        ("", "the first line must be 'file,labels'"),
        ("file,labels\na.jpg,cat,dog\n", "'a.jpg,cat,dog' has 3 cells"),
        ("file,labels\na.jpg,cat\na.jpg,dog\n", "'a.jpg' has two rows"),
        ("file,labels\na.jpg,cat ?cat\n", "names a class twice"),
        ("file,labels\na.jpg,cat\n", "1 images have no row, the first is 'b/c.jpg'"),
        ("file,labels\na.jpg,cat\nb/c.jpg,\nd.jpg,cat\n", "'d.jpg' is no image"),
        ("file,labels\na.jpg,\nb/c.jpg,\n", "names no class at all"),
    ],
)
def test_labels_csv_refusals(tmp_path, text, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        multi(tmp_path, text)
    assert str(tmp_path / "labels.csv") in str(caught.value)


# ------------------------------------------------------------------------------------------------- torchvision


def food101(root):
    for name in ("pizza/1", "pizza/2", "soup/3", "soup/4"):
        picture(root / "food-101" / "images" / f"{name}.jpg")
    write(root / "food-101" / "meta" / "train.json", json.dumps({"pizza": ["pizza/2"], "soup": ["soup/3"]}))
    write(root / "food-101" / "meta" / "test.json", json.dumps({"pizza": ["pizza/1"], "soup": ["soup/4"]}))
    return ["2.jpg", "3.jpg"], [0, 1], ["1.jpg", "4.jpg"], [0, 1], ("pizza", "soup")


def oxford_iiit_pet(root):
    for name in ("Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2"):
        picture(root / "oxford-iiit-pet" / "images" / f"{name}.jpg")
    notes = root / "oxford-iiit-pet" / "annotations"
    write(notes / "trainval.txt", "beagle_1 2 2 1\nAbyssinian_1 1 1 1\n")
    write(notes / "test.txt", "Abyssinian_2 1 1 1\nbeagle_2 2 2 1\n")
    return (
        ["beagle_1.jpg", "Abyssinian_1.jpg"],
        [1, 0],
        ["Abyssinian_2.jpg", "beagle_2.jpg"],
        [0, 1],
        ("Abyssinian", "Beagle"),
    )


def stanford_cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", object), ("class", object)])
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "Ford"], object)})
    scipy.io.savemat(base / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    scipy.io.savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows[::-1]})
    for folder in ("cars_train", "cars_test"):
        picture(base / folder / "1.jpg")
        picture(base / folder / "2.jpg")
    return ["1.jpg", "2.jpg"], [1, 0], ["2.jpg", "1.jpg"], [0, 1], ("Audi", "Ford")


def sun397(root):
    base = root / "SUN397"
    for name in ("a/abbey/sun_1", "a/abbey/sun_2", "z/zoo/indoor/sun_3", "z/zoo/indoor/sun_4"):
        picture(base / f"{name}.jpg")
    write(base / "ClassName.txt", "/a/abbey\n/z/zoo/indoor\n")
    write(base / "Training_01.txt", "/z/zoo/indoor/sun_3.jpg\n/a/abbey/sun_1.jpg\n")
    write(base / "Testing_01.txt", "/a/abbey/sun_2.jpg\n/z/zoo/indoor/sun_4.jpg\n")
    return ["sun_3.jpg", "sun_1.jpg"], [1, 0], ["sun_2.jpg", "sun_4.jpg"], [0, 1], ("abbey", "zoo/indoor")


def places365(root):
    write(root / "categories_places365.txt", "/a/abbey 0\n/z/zoo 1\n")
    write(root / "places365_train_standard.txt", "/z/zoo/1.jpg 1\n/a/abbey/2.jpg 0\n")
    write(root / "places365_val.txt", "Places365_val_1.jpg 1\n")
    for name in ("data_256_standard/z/zoo/1.jpg", "data_256_standard/a/abbey/2.jpg", "val_256/Places365_val_1.jpg"):
        picture(root / name)
    return ["1.jpg", "2.jpg"], [1, 0], ["Places365_val_1.jpg"], [1], ("/a/abbey", "/z/zoo")


@pytest.mark.parametrize("make", [food101, oxford_iiit_pet, stanford_cars, sun397, places365], ids=lambda f: f.__name__)
def test_torchvision_layouts(tmp_path, make, monkeypatch):
    expected = make(tmp_path)
    # The miniature's lists do not have the published checksums.
    monkeypatch.setattr(torchvision.datasets.Places365, "_check_integrity", lambda self, file, md5, download: True)
    train, test = open_torchvision(make.__name__, tmp_path)
    found = names(train), train.targets.tolist(), names(test), test.targets.tolist(), train.class_names
    assert found == tuple(expected)
    assert all(path.is_file() for data in (train, test) for path in data.images)
    assert train.images.fingerprint() != test.images.fingerprint()


def test_cifar10_has_images_without_files(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps({"data": rows[i : i + 1], "labels": [i % 2]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    train, test = open_torchvision("cifar10", tmp_path)
    assert (len(train.images), len(test.images), train.class_names) == (5, 1, ("cat", "dog"))
    assert train.targets.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(train.images[2], torch.from_numpy(rows[2]).view(3, 32, 32))
    assert train.images.fingerprint() != test.images.fingerprint()
    pixels, label = LabelledPixels(train.images, train.targets)[3]
    assert torch.equal(pixels, train.images[3])
    assert label == 1


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_missing_data_names_layout_and_remedy(kind, tmp_path):
    with pytest.raises(UserError) as caught:
        open_torchvision(kind, tmp_path / "nothing")
    message = str(caught.value)
    assert "\n" not in message
    assert LAYOUTS[kind] in message
    assert ("data.download=true" in message) == (kind != "stanford_cars")
    assert not (tmp_path / "nothing").exists()


def test_what_cannot_be_downloaded_says_so(tmp_path):
    with pytest.raises(UserError, match="can no longer be downloaded"):
        open_torchvision("stanford_cars", tmp_path, download=True)


def test_sun397_without_partitions(tmp_path):
    sun397(tmp_path)
    (tmp_path / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"Partitions\.zip"):
        open_torchvision("sun397", tmp_path)


# ------------------------------------------------------------------------------------------------- images, classes


def test_a_fingerprint_sees_names_sizes_and_times_but_not_the_root(tmp_path):
    for place in ("one", "two"):
        for i in range(2):
            picture(tmp_path / place / f"{i}.png", shade=i)
            os.utime(tmp_path / place / f"{i}.png", (10, 10))
    files = ["0.png", "1.png"]
    first = ImageFiles(tmp_path / "one", files).fingerprint()
    assert ImageFiles(tmp_path / "two", files).fingerprint() == first
    assert ImageFiles(tmp_path / "one", files[::-1]).fingerprint() != first
    os.utime(tmp_path / "one" / "0.png", (10, 11))
    assert ImageFiles(tmp_path / "one", files).fingerprint() != first


def test_objects_of_any_mode_become_rgb():
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    objects = ImageObjects([(grey, 0), (np.asarray(grey), 1)], "x")
    for image in objects[0], objects[1]:
        assert image.shape == (3, 3, 4)
        assert all(torch.equal(channel, torch.arange(12, dtype=torch.uint8).view(3, 4)) for channel in image)
    assert objects.fingerprint() != ImageObjects(objects.dataset, "y").fingerprint()


def single(labels, classes):
    return LabelledImages(ImageFiles("", ["x"] * len(labels)), torch.tensor(labels), classes)


def test_classes_are_aligned_by_name():
    train, test = single([0, 1, 2], ("a", "b", "c")), single([0, 1, 1], ("b", "c"))
    assert align_classes(test, train).targets.tolist() == [1, 2, 2]
    assert align_classes(test, train).class_names == ("a", "b", "c")
    assert train.one_vs_rest().tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    with pytest.raises(UserError, match=r"the class 'd' \(1 such\), which the training images lack"):
        align_classes(single([0, 1], ("a", "d")), train)


def test_classes_of_multi_label_sets_are_aligned_by_name():
    train = LabelledImages(ImageFiles("", ["x"]), torch.tensor([[1, -1, 1]], dtype=torch.int8), ("a", "b", "c"))
    test = LabelledImages(ImageFiles("", ["y"]), torch.tensor([[0, 1]], dtype=torch.int8), ("c", "a"))
    assert align_classes(test, train).targets.tolist() == [[1, -1, 0]]
