"""Clothing Co-Parsing as a multi-task data set: the parts that clothes stand for, and the files."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image

from polyscene.downstream.multitask.data.check import check_images, check_splits
from polyscene.downstream.multitask.data.opening import open_dense_images
from polyscene.launch.multitask_checks import check_values
from polyscene.launch.multitask_config import MultitaskConfig
from polyscene.runtime.config import load_config
from polyscene.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("POLYSCENE_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def ccp(load_script):
    return load_script("ccp300")


@pytest.fixture
def names(ccp):
    listed = ccp.ON_HEAD | ccp.ON_HANDS | ccp.ON_LEGS | ccp.ON_FEET | ccp.CARRIED | {"skin", "dress", "shirt"}
    return ["null", *sorted(listed)]


def person(names, rows):
    """A column of 100 rows, 9 wide: label of every row range, shirt where none is given."""
    labels = np.full((100, 9), names.index("shirt"), dtype=np.uint8)
    for (first, last), label in rows.items():
        labels[first:last] = names.index(label)
    return np.pad(labels, ((7, 3), (20, 20)))


def test_garments_become_parts_by_where_they_are(ccp, names):
    labels = person(names, {(0, 8): "hair", (8, 15): "skin", (50, 80): "dress", (80, 92): "tights", (92, 100): "shoes"})
    parts = ccp.human_parts(labels, names)[7:107, 24]
    assert (parts[:15] == ccp.HEAD).all()
    assert (parts[15:50] == ccp.TORSO).all()
    assert (parts[50:73] == ccp.UPPER_LEGS).all()
    assert (parts[73:] == ccp.LOWER_LEGS).all()
    outside = np.ones(labels.shape, dtype=bool)
    outside[7:107, 20:29] = False
    assert (ccp.human_parts(labels, names)[outside] == 0).all()


def test_trousers_reach_higher_than_other_clothes(ccp, names):
    parts = ccp.human_parts(person(names, {(30, 100): "jeans"}), names)[7:107, 24]
    assert (parts[:38] == ccp.TORSO).all()
    assert (parts[38:73] == ccp.UPPER_LEGS).all()
    assert (parts[73:] == ccp.LOWER_LEGS).all()


def test_bare_skin_is_neck_or_arm_or_leg(ccp, names):
    labels = person(names, {})
    labels[7:107, 18:20] = labels[7:107, 29:31] = names.index("skin")  # two arms along the whole body
    labels[7 + 15 : 7 + 28, 24] = names.index("skin")
    parts = ccp.human_parts(labels, names)[7:107]
    assert (parts[15:28, 24] == ccp.TORSO).all()
    for column in (18, 30):
        # Six columns off the middle: 0.06 heights, outside the neck.
        assert (parts[:15, column] == ccp.HEAD).all()
        assert (parts[15:36, column] == ccp.UPPER_ARMS).all()
        assert (parts[36:53, column] == ccp.LOWER_ARMS).all()
        assert (parts[53:73, column] == ccp.UPPER_LEGS).all()


def test_what_is_carried_is_void_and_does_not_make_the_person_taller(ccp, names):
    labels = person(names, {})
    labels[:7, 24] = names.index("bag")
    parts = ccp.human_parts(labels, names)
    assert (parts[:7, 24] == ccp.VOID).all()
    assert (parts[7 + 50 - 1, 24], parts[7 + 50, 24]) == (ccp.TORSO, ccp.UPPER_LEGS)
    assert (ccp.human_parts(np.zeros((4, 4), np.uint8), names) == 0).all()


def test_another_label_list_is_refused(ccp, names):
    with pytest.raises(UserError, match="no label 'skin'"):
        ccp.human_parts(np.zeros((4, 4), np.uint8), [name for name in names if name != "skin"])


@pytest.fixture
def subset(names, tmp_path):
    """Ten photos in the archive's layout."""
    root = tmp_path / "ccp"
    (root / "photos").mkdir(parents=True)
    (root / "annotations" / "pixel-level").mkdir(parents=True)
    scipy.io.savemat(root / "label_list.mat", {"label_list": np.array([names], dtype=object)})
    for number in range(10):
        labels = person(names, {(0, 15): "hair"})
        Image.fromarray(np.stack([labels * 5] * 3, axis=-1)).save(root / "photos" / f"{number:04d}.jpg")
        path = root / "annotations" / "pixel-level" / f"{number:04d}.mat"
        scipy.io.savemat(path, {"groundtruth": labels})
    return root


@pytest.mark.parametrize("height", [None, 55])
def test_the_written_folder_is_a_data_set(ccp, subset, tmp_path, height):
    splits = ccp.convert(subset, tmp_path / "data", height)
    assert splits["val"] == ["0004", "0009"]
    train, val = (open_dense_images("folder", tmp_path / "data", split, ccp.TASKS) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2)
    assert check_images(train) == check_images(val) == check_splits(train, val, {}) == []
    sample = train.read(0)
    assert sample.image.shape[1] == (height or 110)
    # Parts are on the person, edges around it and its head.
    parts, salient = (sample.targets[name].values.squeeze() for name in ("parts", "saliency"))
    assert ((parts > 0) == (salient > 0.5)).all()
    assert 0.01 < float(sample.targets["edges"].values.mean()) < 0.15
    assert train.tasks["parts"].channels == 7


def test_damage_is_named(ccp, subset, tmp_path):
    Image.new("RGB", (9, 9)).save(subset / "photos" / "0003.jpg")
    with pytest.raises(UserError, match="photo '0003' is"):
        ccp.convert(subset, tmp_path / "data", None)
    (subset / "annotations" / "pixel-level" / "0000.mat").unlink()
    with pytest.raises(UserError, match="0000.mat"):
        ccp.convert(subset, tmp_path / "data", None)
    for photo in (subset / "photos").iterdir():
        photo.unlink()
    with pytest.raises(UserError, match="holds no photos"):
        ccp.convert(subset, tmp_path / "data", None)


def test_the_training_config_is_valid(ccp, tmp_path):
    options = ccp.parse(["--root", "x", "--out", str(tmp_path), "--train"])
    path = tmp_path / "rcm.yaml"
    path.write_text(yaml.safe_dump(ccp.training_config(options)))
    config = load_config(MultitaskConfig, str(path), [])
    check_values(config)
    assert (config.tasks, config.arch, options.height) == (("parts", "saliency", "edges"), "resnet18", 192)


def test_the_results_table(ccp):
    table = ccp.results_table({"parts_miou": 0.4321, "saliency_iou": 0.8, "edges_odsf": 0.5})
    assert table.splitlines()[-1] == "| 43.2% | 80.0% | 50.0% |"


def test_the_real_subset(ccp, tmp_path):
    """Every photo shows a person: a head above a torso above legs, on about a quarter of the picture."""
    archive = DATA / "ccp300.tar"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].split("/")[0]
        chosen = ("label_list.mat", *(f"{n:04d}.{kind}" for n in (1, 40, 77, 150, 299) for kind in ("jpg", "mat")))
        tar.extractall(tmp_path, [m for m in tar.getmembers() if m.name.endswith(chosen)], filter="data")
    ccp.convert(tmp_path / top, tmp_path / "data", 128)
    images = open_dense_images("folder", tmp_path / "data", "train", ccp.TASKS)
    assert len(images) == 4
    for index in range(len(images)):
        targets = images.read(index).targets
        parts, valid = targets["parts"]
        rows = [float((parts == part).nonzero()[:, 0].float().mean()) for part in (1, 2, 5, 6)]
        assert rows == sorted(rows)
        assert 0.05 < float(targets["saliency"].values.mean()) < 0.5
        assert valid.float().mean() > 0.9
