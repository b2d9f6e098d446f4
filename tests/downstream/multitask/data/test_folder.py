import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.data.check import check_images
from polyscene.downstream.multitask.data.folder import TASKS, open_folder, person_images
from polyscene.downstream.multitask.data.opening import TaskRecord, open_dense_images, task_of, task_records
from polyscene.runtime.errors import UserError

H, W = 6, 8
CLASSES = ("background", "road", "tree")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two training images, one for evaluation, with all six tasks; image ``b`` is a PNG and has no people."""
    root = tmp_path / "mine"
    for number, name in enumerate(("a", "b", "c")):
        image = np.full((H, W, 3), 40 * number, dtype=np.uint8)
        save(root / "images" / (f"{name}.png" if name == "b" else f"{name}.JPG"), image)
        labels = (np.arange(H * W).reshape(H, W) % 3).astype(np.uint8)
        labels[0, 0] = 255
        save(root / "segmentation" / f"{name}.png", labels)
        save(root / "parts" / f"{name}.png", np.where(labels == 255, 255, (labels == 1) * (name != "b")).astype("u1"))
        share = np.zeros((H, W), dtype=np.uint8)
        share[:, 3] = (0, 51, 102, 153, 204, 255)
        save(root / "saliency" / f"{name}.png", share)
        save(root / "edges" / f"{name}.png", share)
        normals = np.full((H, W, 3), (127, 0, 127), dtype=np.uint8)  # faces the camera
        normals[0, :2] = (127, 127, 127)
        save(root / "normals" / f"{name}.png", normals)
        metres = np.linspace(0.5, 9, H * W).reshape(H, W)
        metres[2, 2] = 0
        if name == "a":
            (root / "depth").mkdir()
            np.save(root / "depth" / "a.npy", metres.astype(np.float32))
        else:
            save(root / "depth" / f"{name}.png", np.round(metres * 1000).astype(np.uint16))
    (root / "train.txt").write_text("a\nb\n")
    (root / "splits").mkdir()
    (root / "splits" / "val.txt").write_text("c\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "parts.txt").write_text("background\nperson\n")
    return root


def refusal(root, split, tasks=None):
    """What is said of the first image that cannot be read, or of the folder."""

    def read_all():
        images = open_folder(root, split, tasks)
        return [images.read(index) for index in range(len(images))]

    with pytest.raises(UserError) as error:
        read_all()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_task_is_read_as_it_was_stored(root):
    images = open_folder(root, "train")
    assert tuple(images.tasks) == TASKS
    assert images.names == ("a", "b")
    assert open_folder(root, "val").names == ("c",)
    assert [images.image_path(i).name for i in (0, 1)] == ["a.JPG", "b.png"]
    first, second = (images.read(index) for index in (0, 1))
    assert int(second.image.max()) == 40

    values, valid = second.targets["segmentation"]
    assert valid.sum() == H * W - 1
    assert not valid[0, 0]
    assert values.flatten()[:7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.tasks["segmentation"].classes == CLASSES

    for name in ("saliency", "edges"):
        values, valid = first.targets[name]
        assert values.shape == (1, H, W)
        assert valid.all()
        assert torch.allclose(values[0, :, 3], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1]))
        assert values.sum() == values[0, :, 3].sum()

    values, valid = first.targets["normals"]
    assert not valid[0, :2].any()
    assert valid.sum() == H * W - 2
    assert torch.allclose(values[:, 5, 5], torch.tensor([0.0, -1.0, 0.0]), atol=0.01)
    assert values[:, 0, 0].abs().max() == 0

    expected = torch.linspace(0.5, 9, H * W).reshape(H, W)
    for sample, tolerance in ((first, 1e-6), (second, 0.0006)):
        values, valid = sample.targets["depth"]
        assert (~valid).nonzero().tolist() == [[2, 2]]
        assert values[0, 2, 2] == 0
        assert (values[0] - expected)[valid].abs().max() < tolerance


def test_checking_finds_nothing_wrong_and_workers_can_have_the_images(root):
    images = pickle.loads(pickle.dumps(open_folder(root, "train")))
    assert check_images(images) == []
    (root / "depth" / "b.png").unlink()
    assert [(f.subject, f.count) for f in check_images(images)] == [("train depth", 1)]


def test_people_are_found_in_the_part_maps(root):
    images = open_folder(root, "train", ["parts"])
    seen = []
    assert person_images(images, seen.append) == [0]
    assert seen == [1, 1]
    with pytest.raises(UserError, match="without the task 'parts'"):
        person_images(images.only([]))


def test_a_record_rebuilds_a_task_without_the_folder(root, tmp_path):
    images = open_dense_images("folder", root, "val", ["segmentation", "depth"])
    records = {k: json.dumps(v.to_json()) for k, v in task_records(images, "folder").items()}
    root.rename(tmp_path / "gone")
    spec = task_of(TaskRecord.from_json(json.loads(records["segmentation"])))
    assert (spec.channels, spec.classes) == (3, CLASSES)
    # The first class is background, so it is black; the second is VOC's first colour.
    assert spec.picture(torch.tensor([[0, 1]])).tolist() == [[[0, 0, 0], [128, 0, 0]]]
    assert task_of(TaskRecord.from_json(json.loads(records["depth"]))).unit == "m"


def test_without_a_background_no_class_is_black(root):
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    spec = open_folder(root, "val", ["segmentation"]).tasks["segmentation"]
    assert spec.picture(torch.tensor([[0]])).tolist() == [[[128, 0, 0]]]


def test_only_the_folders_of_the_tasks_need_exist(root):
    for name in ("depth", "parts"):
        (root / name).rename(root / f"not_{name}")
    assert tuple(open_folder(root, "train").tasks) == ("segmentation", "saliency", "edges", "normals")
    assert tuple(open_folder(root, "train", ["edges"]).read(0).targets) == ("edges",)
    assert "no folder depth, which task 'depth' needs" in refusal(root, "train", ["depth"])


def test_what_is_missing_is_named(root):
    assert "no folder images" in refusal(root / "images", "train")
    assert "no list test.txt (nor splits/test.txt)" in refusal(root, "test")
    assert "no task 'sky'; it may have segmentation, parts" in refusal(root, "train", ["sky"])
    (root / "classes.txt").unlink()
    assert "classes.txt' does not exist; task 'segmentation' needs it" in refusal(root, "train", ["segmentation"])
    (root / "train.txt").write_text("a.jpg\n")
    assert "names files ('a.jpg'); leave out the endings" in refusal(root, "train", ["depth"])
    (root / "train.txt").write_text("z\n")
    assert "z.jpg" in refusal(root, "train", ["depth"])


@pytest.mark.parametrize(
    ("task", "array", "words"),
    [
        ("segmentation", np.full((H, W), 3, np.uint8), "holds the class 3, expected 0 to 2"),
        ("segmentation", np.zeros((H, W, 3), np.uint8), "holds colours"),
        ("parts", np.full((H, W), 2, np.uint8), "holds the class 2, expected 0 to 1"),
        ("saliency", np.ones((H, W), np.uint8), "holds 0 and 1; store 0 and 255"),
        ("edges", np.zeros((W, H), np.uint8), f"is {W}x{H}, the image {H}x{W}"),
        ("depth", np.full((H, W), 9, np.uint8), "8 bits; store millimetres in 16 bits"),
    ],
)
def test_wrong_files_are_named(root, task, array, words):
    save(root / task / "b.png", array)
    assert words in (message := refusal(root, "train", [task]))
    assert "'b'" in message or "b.png" in message


def test_wrong_arrays_of_depth_are_named(root):
    np.save(root / "depth" / "a.npy", np.full((H, W), 1500))
    assert "store metres as floats" in refusal(root, "train", ["depth"])
    np.save(root / "depth" / "a.npy", np.array([None]), allow_pickle=True)
    assert "a.npy" in refusal(root, "train", ["depth"])
