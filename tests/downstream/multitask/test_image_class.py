"""Tasks of one class an image: the maker, labels from names and CSV files, and what happens to them on the way."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from polyscene.downstream.multitask.data.check import check_images
from polyscene.downstream.multitask.data.opening import (
    TaskRecord,
    image_level_tasks,
    open_dense_images,
    task_of,
    task_records,
)
from polyscene.downstream.multitask.data.records import Sample
from polyscene.downstream.multitask.data.transforms import Augmentation, augment, collate
from polyscene.downstream.multitask.losses import cross_entropy
from polyscene.downstream.multitask.tasks import depth, image_class, load_task
from polyscene.runtime.errors import UserError

EXAMPLE = Path(__file__).parents[3] / "examples" / "scene_type.py"
FROM_CSV = """
from polyscene.downstream.multitask.tasks import image_class

def task():
    return image_class.task("place", "Place", ("kitchen", "office"), image_class.csv_labels("places.csv"))
"""


def nth(root, name, labels):
    return labels[int(name)]


def scene(*labels, classes=("room", "street")):
    return image_class.task("scene", "Scene", classes, partial(nth, labels=labels))


@pytest.fixture
def csv_task(tmp_path):
    """``csv_task(text) -> (root, task)`` of a data set with this ``places.csv``."""

    def make(text):
        root = tmp_path / "data"
        root.mkdir()
        (root / "places.csv").write_text(text, encoding="latin-1")
        (tmp_path / "place.py").write_text(FROM_CSV)
        return root, load_task(str(tmp_path / "place.py"))

    return make


@pytest.fixture
def labelled_folder(tmp_path):
    """A folder of two images with depth and the task of a CSV file, and that file."""
    root = tmp_path / "mine"
    for name in ("first", "second"):
        for folder in ("images", "depth"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10, 3), 99, dtype=np.uint8)).save(root / "images" / f"{name}.png")
        np.save(root / "depth" / f"{name}.npy", np.ones((8, 10), dtype=np.float32))
    (root / "train.txt").write_text("first\nsecond\n")
    (root / "places.csv").write_text("first,office\nsecond,kitchen\n")
    (tmp_path / "place.py").write_text(FROM_CSV)
    return open_dense_images("folder", root, "train", ["depth", str(tmp_path / "place.py")]), root / "places.csv"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_labels_are_names_numbers_or_absent():
    task = scene("street", 0, None)
    found = [task.read(Path(), name) for name in "012"]
    assert [tuple(target.values.shape) for target in found] == [(1, 1)] * 3
    assert [int(target.values) for target in found[:2]] == [1, 0]
    assert [bool(target.valid) for target in found] == [True, True, False]
    assert found[0].values.dtype == torch.int64
    assert (task.image_level, task.channels, task.classes) == (True, 2, ("room", "street"))


def test_the_loss_is_that_of_the_labelled_images():
    task = scene("street", 0, None)
    target = [torch.stack(parts) for parts in zip(*(task.read(Path(), name) for name in "012"))]
    output = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(output[:2, :, 0, 0], torch.tensor([1, 0]))
    torch.testing.assert_close(task.loss(output, *target), expected)
    torch.testing.assert_close(cross_entropy(output, *target), expected)


@pytest.mark.parametrize(
    ("label", "words"),
    [("kitchen", "'0' has the class 'kitchen', expected room, street"), (2, "the class 2, expected"), (-1, "class -1")],
)
def test_other_labels_are_refused(label, words):
    with pytest.raises(UserError) as error:
        scene(label).read(Path(), "0")
    assert words in one_line(error)


@pytest.mark.parametrize("classes", [("room",), ("room", "room"), ()])
def test_other_classes_are_refused(classes):
    with pytest.raises(ValueError, match="two or more different names"):
        scene(0, classes=classes)


def test_a_csv_file_beside_the_images(csv_task):
    root, task = csv_task("one,office\n\ntwo, kitchen\nthree,\n")
    found = {name: task.read(root, name) for name in ("one", "two", "three")}
    assert [int(found[name].values) for name in ("one", "two")] == [1, 0]
    assert [bool(target.valid) for target in found.values()] == [True, True, False]
    with pytest.raises(UserError, match="no line for 'four'; add 'four,CLASS'"):
        task.read(root, "four")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one,office,2\n", "line 1: 3 entries, expected 2: NAME,CLASS"),
        ("one,office\none,kitchen\n", "line 2: 'one' is 'kitchen' here, 'office' before"),
        ("one,garden\n", "'one' has the class 'garden', expected kitchen, office"),
        ("one,b\xfcro\n", "is no CSV file in UTF-8"),
    ],
)
def test_damaged_csv_files_are_one_line(csv_task, text, words):
    root, task = csv_task(text)
    with pytest.raises(UserError, match=words) as error:
        task.read(root, "one")
    one_line(error)


def test_a_missing_csv_file_is_one_line(csv_task, tmp_path):
    task = csv_task("")[1]
    with pytest.raises(UserError, match=r"places.csv' cannot be read .*; it must hold lines NAME,CLASS"):
        task.read(tmp_path / "elsewhere", "one")


def test_the_example_reads_the_built_in_scenes():
    task = load_task(str(EXAMPLE))
    assert int(task.read(Path(), "room_003_c01_l00").values) == 0
    assert int(task.read(Path(), "street_002_c00_l01").values) == 1
    again = pickle.loads(pickle.dumps(task))  # as a spawned worker gets it
    assert int(again.read(Path(), "street_002_c00_l01").values) == 1
    assert again.image_level


def test_the_augmentation_moves_pixels_and_leaves_the_class(tmp_path):
    task = scene("street", "room")
    target = task.read(Path(), "0")
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    metres = torch.rand(1, 30, 40, generator=torch.Generator().manual_seed(1)) + 1
    tasks = {"depth": depth.task(), "scene": task}
    sample = Sample("0", image, {"depth": (metres, torch.ones(30, 40, dtype=torch.bool)), "scene": target})
    for recipe in (
        Augmentation((20, 24), scales=(0.5, 2.0), flip=1.0),
        Augmentation((20, 24), "stretch", (0.75, 1.25), between=True, degrees=20.0, flip=1.0),
    ):
        drawn = [augment(sample, tasks, recipe, seed=0, epoch=0, index=index) for index in range(3)]
        assert all(one.targets["depth"].values.shape == (1, 20, 24) for one in drawn)
        batch = collate(drawn)
        assert torch.equal(batch.targets["scene"].values, torch.ones(3, 1, 1, dtype=torch.int64))
        assert batch.targets["scene"].valid.all()
        assert batch.targets["scene"].valid.shape == (3, 1, 1)


def test_check_reads_the_labels(labelled_folder):
    images, path = labelled_folder
    assert images.read(0).targets["place"].valid.shape == (1, 1)
    assert check_images(images) == []
    path.write_text("first,office\n")
    findings = check_images(images)
    assert [(f.level, f.subject, f.count) for f in findings] == [("error", "train place", 1)]
    assert "no line for 'second'" in findings[0].message


def test_targets_of_another_size_are_refused(labelled_folder):
    images, _ = labelled_folder
    spec = replace(images.tasks["place"], read=lambda root, name: (torch.zeros(8, 10).long(), torch.ones(8, 10) > 0))
    wrong = images.only(["depth"]).with_task(spec)
    with pytest.raises(UserError) as error:
        wrong.read(0)
    assert (
        "the target of task 'place' is 8x10; read=... of an image-level task must return values and valid of 1x1"
        in (one_line(error))
    )
    assert [(f.level, f.count) for f in check_images(wrong)] == [("error", 2)]


def test_records_remember_that_a_task_is_image_level(labelled_folder, tmp_path):
    images, _ = labelled_folder
    records = task_records(images, "folder")
    stored = {name: json.loads(json.dumps(record.to_json())) for name, record in records.items()}
    assert stored["place"]["image_level"] is True
    assert "image_level" not in stored["depth"]  # as files of dense tasks always were
    assert {name: TaskRecord.from_json(content) for name, content in stored.items()} == records
    assert image_level_tasks(records) == ("place",)
    assert task_of(records["place"]).image_level
    with pytest.raises(UserError, match="a task record's 'image_level' is damaged"):
        TaskRecord.from_json({**stored["place"], "image_level": 1})
    with pytest.raises(UserError, match="'place' was dense and is image-level in its file") as error:
        task_of(replace(records["place"], image_level=False))
    one_line(error)
