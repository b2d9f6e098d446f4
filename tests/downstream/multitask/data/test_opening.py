import json

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.data.nyud import open_nyud
from polyscene.downstream.multitask.data.opening import (
    PUBLISHED_COUNTS,
    TaskRecord,
    TaskSettings,
    images_with_people,
    open_dense_images,
    task_of,
    task_records,
)
from polyscene.downstream.multitask.data.pascal_context import open_pascal_context
from polyscene.runtime.errors import UserError

SKY = """
import torch
from polyscene.downstream.multitask.losses import balanced_bce
from polyscene.downstream.multitask.tasks import Target, TargetGeometry, TaskSpec, grey, probability

def read(root, name):
    return Target(torch.full((1, 24, 40), len(name) / 10), torch.ones(24, 40, dtype=torch.bool))

def task():
    return TaskSpec(name="sky", title="Sky", channels=CHANNELS, loss=balanced_bce, make_metric=dict, metric="x",
                    higher_is_better=True, unit="%", geometry=TargetGeometry("nearest"), activate=probability,
                    colour=grey, read=read)
"""


@pytest.fixture
def sky(tmp_path):
    """``sky(channels) -> path`` of a user's task file, written anew."""

    def write(channels=1):
        path = tmp_path / f"sky{channels}.py"
        path.write_text(SKY.replace("CHANNELS", str(channels)))
        return path

    return write


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def same(sample, other):
    assert list(sample.targets) == list(other.targets)
    for name, target in sample.targets.items():
        assert all(torch.equal(one, two) for one, two in zip(target, other.targets[name]))


def test_each_kind_is_what_its_own_function_opens(nyud_archive, pascal_archive, tmp_path):
    root, order = nyud_archive("mti")[0], ("edges", "depth", "segmentation")
    nyud = open_dense_images("nyud", root, "train", order)
    assert tuple(nyud.tasks) == order
    same(nyud.read(1), open_nyud(root, "train", order).read(1))

    root = pascal_archive("rcm")
    pascal = open_dense_images("pascal", root, "train", ["normals", "parts"])
    same(pascal.read(0), open_pascal_context(root, "train", ["normals", "parts"]).read(0))

    root = tmp_path / "mine"
    for folder in ("images", "edges"):
        (root / folder).mkdir(parents=True)
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / folder / "one.png")
    (root / "train.txt").write_text("one\n")
    mine = open_dense_images("folder", root, "train", ["edges"])
    assert torch.equal(mine.read(0).targets["edges"].values[0], torch.eye(8))


def test_settings_reach_the_tasks_and_the_targets(nyud_archive, pascal_archive):
    settings = TaskSettings(void_class=True, depth_protocol="rcm", normals_axes="camera")
    images = open_dense_images("nyud", nyud_archive("astmt")[0], "val", ["segmentation", "depth", "normals"], settings)
    assert images.tasks["segmentation"].channels == 41
    assert images.tasks["depth"].protocol == {"depth": "rcm"}
    assert images.tasks["normals"].protocol == {"axes": "camera"}
    assert images.read(0).targets["segmentation"].valid.all()
    settings = TaskSettings(saliency_protocol="atrc")
    images = open_dense_images("pascal", pascal_archive("astmt"), "val", ["saliency"], settings)
    assert images.tasks["saliency"].metric == "max_f"


def test_a_users_task_file_takes_its_place_in_the_order(nyud_archive, sky):
    images = open_dense_images("nyud", nyud_archive("atrc")[0], "train", ["edges", str(sky()), "depth"])
    assert list(images.tasks) == ["edges", "sky", "depth"]
    assert list(images.read(0).targets) == ["edges", "sky", "depth"]
    assert torch.equal(images.read(0).targets["sky"].values, torch.full((1, 24, 40), 0.4))
    only = open_dense_images("nyud", images.root, "train", [str(sky())])
    assert list(only.tasks) == ["sky"]


def test_records_survive_json_and_rebuild_their_tasks(nyud_archive, pascal_archive, sky):
    settings = TaskSettings(void_class=True, depth_protocol="rcm", saliency_protocol="survey", normals_axes="camera")
    names = ["segmentation", "depth", "normals", "edges", str(sky())]
    nyud = open_dense_images("nyud", nyud_archive("atrc")[0], "train", names, settings)
    pascal_settings = TaskSettings(saliency_protocol="atrc")
    five = ["segmentation", "parts", "saliency", "edges", "normals"]
    pascal = open_dense_images("pascal", pascal_archive("rcm"), "train", five, pascal_settings)
    for images, kind, chosen in ((nyud, "nyud", settings), (pascal, "pascal", pascal_settings)):
        records = task_records(images, kind, chosen)
        assert list(records) == list(images.tasks)
        for name, record in records.items():
            restored = TaskRecord.from_json(json.loads(json.dumps(record.to_json())))
            assert restored == record
            spec, truth = task_of(restored), images.tasks[name]
            for item in ("name", "title", "channels", "metric", "unit", "classes", "protocol", "source"):
                assert getattr(spec, item) == getattr(truth, item)
            values = torch.rand(3, 4, 5) if name == "normals" else torch.randint(0, 7, (4, 5))
            assert np.array_equal(spec.picture(values), truth.picture(values))
    # What does not concern a task is not recorded, so that it cannot make equal tasks look different.
    assert task_records(nyud, "nyud", settings)["depth"].settings == {"depth_protocol": "rcm"}
    assert task_records(nyud, "nyud", settings)["edges"].settings == {}
    assert task_records(pascal, "pascal", settings)["segmentation"].settings == {}


def test_a_task_that_changed_since_is_refused(nyud_archive, sky, tmp_path):
    images = open_dense_images("nyud", nyud_archive("atrc")[0], "train", [str(sky())])
    record = task_records(images, "nyud")["sky"]
    (tmp_path / "sky1.py").write_text(SKY.replace("CHANNELS", "2"))
    with pytest.raises(UserError) as error:
        task_of(record)
    assert "'sky' with 1 channels is 'sky' with 2 in its file" in one_line(error)
    (tmp_path / "sky1.py").unlink()
    with pytest.raises(UserError, match="does not exist"):
        task_of(record)


def test_damaged_records_are_refused():
    good = TaskRecord("depth", "nyud", 1, (), {"depth_protocol": "rcm"}).to_json()
    for content in (None, [], {**good, "more": 1}, {k: v for k, v in good.items() if k != "name"}):
        with pytest.raises(UserError, match="task record must have"):
            TaskRecord.from_json(content)
    for key, value in {"channels": "1", "classes": [1], "settings": []}.items():
        with pytest.raises(UserError, match=key):
            TaskRecord.from_json({**good, key: value})
    for key, value in {"dataset": "other", "name": "sky", "settings": {"new": True}}.items():
        with pytest.raises(UserError) as error:
            task_of(TaskRecord.from_json({**good, key: value}))
        assert "newer polyscene" in one_line(error)
    with pytest.raises(UserError, match="must be one of survey, rcm"):
        task_of(TaskRecord.from_json({**good, "settings": {"depth_protocol": "x"}}))
    with pytest.raises(UserError, match="no classes"):
        task_of(TaskRecord("parts", "folder", 7))


@pytest.mark.parametrize(
    ("kind", "tasks", "settings", "words"),
    [
        ("coco", ["depth"], {}, "choose from nyud, pascal, folder"),
        ("nyud", [], {}, "at least one"),
        ("nyud", ["depth", "depth"], {}, "'depth' is named twice"),
        ("nyud", ["parts"], {}, "has no task 'parts'"),
        ("nyud", ["missing.py"], {}, "'missing.py' does not exist"),
        ("pascal", ["segmentation"], {"void_class": True}, "void_class"),
    ],
)
def test_wrong_requests_are_one_line(nyud_archive, kind, tasks, settings, words):
    with pytest.raises(UserError) as error:
        open_dense_images(kind, nyud_archive("mti")[0], "train", tasks, TaskSettings(**settings))
    assert words in one_line(error)


@pytest.mark.parametrize("name", ["void_class", "depth_protocol", "saliency_protocol", "normals_axes"])
def test_wrong_settings_are_one_line(name):
    with pytest.raises(UserError) as error:
        TaskSettings(**{name: "x"})
    assert f"{name}: 'x' must be one of" in one_line(error)


def test_images_with_people(pascal_archive, nyud_archive):
    images = open_dense_images("pascal", pascal_archive("astmt"), "train", ["parts", "edges"])
    assert images_with_people(images, "pascal").names == ("one",)
    with pytest.raises(UserError, match="nyud has no human parts"):
        images_with_people(images, "nyud")
    with pytest.raises(UserError, match="no image of the list 'train'"):
        images_with_people(images.subset([1]), "pascal")


def test_published_numbers_of_images():
    assert PUBLISHED_COUNTS["nyud"] == {"train": 795, "val": 654}
    assert PUBLISHED_COUNTS["pascal"] == {"train": 4998, "val": 5105}
