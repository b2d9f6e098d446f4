"""``polyscene retrieve`` from the command line."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from polyscene.launch.evaluation import random_weights
from polyscene.launch.retrieve_config import RetrieveConfig
from polyscene.runtime.config import load_config, to_yaml
from polyscene.runtime.results import read_results
from polyscene.runtime.weights import write_weights

COLOURS = np.array([[20, 20, 20], [230, 30, 30], [60, 90, 240]], dtype=np.uint8)


def paint(root, part, stem, seed, suffix=".png"):
    """An image of coloured blocks, with its labels; returns the labels."""
    labels = np.random.default_rng(seed).integers(0, 3, (3, 4)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
    for folder, values, ending in ((part[0], COLOURS[labels], suffix), (part[1], labels, ".png")):
        path = root / folder / f"{stem}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images to retrieve from and three to segment."""
    root = tmp_path_factory.mktemp("segments")
    for i in range(13):
        labels = paint(root, ("images", "labels"), f"{'test' if i >= 10 else 'train'}{i}", i)
        (root / "saliency").mkdir(exist_ok=True)
        salient = ((labels == 1) * 255).astype(np.uint8)
        Image.fromarray(salient).save(root / "saliency" / f"{'test' if i >= 10 else 'train'}{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    write_weights(random_weights("resnet10t", 3), path)
    return path


@pytest.fixture
def words(data, weights, tmp_path):
    """The command line of a small retrieval; later words win."""
    config = tmp_path / "retrieve.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "weights": str(weights),
                "out": str(tmp_path / "out"),
                "size": [48, 64],
                "clusters": 4,
                "workers": 0,
                "device": "cpu",
                "picture_rows": 2,
                "data": {
                    "kind": "folder",
                    "images": str(data / "images"),
                    "labels": str(data / "labels"),
                    "train": ["train*"],
                    "test": "test*",
                    "classes": ["ground", "red", "blue"],
                },
            }
        )
    )
    return lambda *more: ("retrieve", config, *more)


def test_results_pictures_and_tables(polyscene, words, tmp_path):
    code, out, err = polyscene(*words("data.subset_classes=[red, blue]"))
    assert code == 0, err
    assert "random initialisation" in out
    assert "chance" in out
    results = read_results(tmp_path / "out" / "results.json")
    assert [m.key for m in results.metrics] == ["miou_2", "miou_all", "pixel_accuracy"]
    classes = results.per_class["miou_all"]["weights"]
    assert list(classes) == ["ground", "red", "blue"]
    assert results.values["miou_all"] == pytest.approx(np.mean(list(classes.values())))
    assert results.values["miou_2"] == pytest.approx((classes["red"] + classes["blue"]) / 2)
    # Plain colours: even random filters tell them apart better than guessing does.
    assert results.values["pixel_accuracy"] > results.chance["pixel_accuracy"] + 0.1
    assert 0 <= results.baseline["random"]["miou_all"] <= 1
    assert results.protocol["arch"] == "resnet10t"
    assert results.protocol["train_images"] == 10
    assert results.protocol["test_images"] == 3
    assert not results.published
    assert len(results.pictures) == 2
    for picture in results.pictures:
        with Image.open(tmp_path / "out" / picture.file) as image:
            assert image.width > 800


def test_runs_are_repeatable_and_finish_once(polyscene, words, tmp_path):
    assert polyscene(*words("picture_rows=0"))[0] == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert first["pictures"] == []
    code, _, err = polyscene(*words("picture_rows=0"))
    assert code == 0
    assert "already finished" in err
    again = tmp_path / "again"
    assert polyscene(*words("picture_rows=0", f"out={again}", "batch_size=3"))[0] == 0
    second = json.loads((again / "results.json").read_text())
    assert first["per_class"] == second["per_class"]
    code, _, err = polyscene(*words("picture_rows=0", "clusters=5"))
    assert code == 2
    assert "clusters: 4 -> 5" in err


def test_random_weights_have_no_baseline(polyscene, words, tmp_path):
    code, out, err = polyscene(*words("weights=random", "arch=resnet10t", "precision=bf16", "output_stride=16"))
    assert code == 0, err
    assert "resnet10t, random initialisation" in out
    assert read_results(tmp_path / "out" / "results.json").baseline == {}


def test_saliency_protocol(polyscene, words, data, tmp_path):
    code, _, err = polyscene(*words("protocol=saliency", f"data.saliency={data / 'saliency'}", "data.background=0"))
    assert code == 2
    assert "training regions are 'red'" in err  # the only salient class here
    blue = tmp_path / "saliency"
    blue.mkdir()
    for path in (data / "labels").iterdir():
        labels = np.asarray(Image.open(path))
        salient = labels == 1 + int(path.stem[-1]) % 2
        Image.fromarray((salient * 255).astype(np.uint8)).save(blue / path.name)
    code, _, err = polyscene(
        *words("protocol=saliency", f"data.saliency={blue}", "data.background=0", f"out={tmp_path / 'two'}")
    )
    assert code == 0, err
    results = read_results(tmp_path / "two" / "results.json")
    assert results.protocol["bank_regions"]["weights"] == 10
    # Whole images of one colour each: ground is called ground.
    assert results.per_class["miou_all"]["weights"]["ground"] > 0.3


@pytest.fixture
def voc(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for i in range(8):
        paint(base, ("JPEGImages", "SegmentationClass"), f"2007_{i}", i, ".jpg")
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"2007_{i}\n" for i in range(6)))
    (lists / "val.txt").write_text("2007_6\n2007_7\n")
    return tmp_path


def test_voc_has_two_means_and_published_rows(polyscene, voc, weights, tmp_path):
    words = ("retrieve", "retrieve/voc", f"data.root={voc}", f"weights={weights}", "workers=0", "device=cpu")
    code, _, err = polyscene(*words, f"out={tmp_path / 'out'}", "baseline=null", "output_stride=32", "picture_rows=1")
    assert code == 0, err
    results = read_results(tmp_path / "out" / "results.json")
    # Labels 0 to 2 are background, aeroplane and bicycle: the aeroplane alone is one of the seven.
    assert [m.key for m in results.metrics] == ["miou_7", "miou_all", "pixel_accuracy"]
    classes = results.per_class["miou_all"]["weights"]
    assert results.values["miou_7"] == pytest.approx(classes["aeroplane"])
    assert classes["tvmonitor"] is None
    assert results.protocol["subset_classes"] == ["aeroplane", "bottle", "bus", "car", "cat", "cow", "person"]
    assert {row.name: row.values for row in results.published} == {
        "MoCo": {"miou_7": 0.418, "miou_all": 0.281},
        "MoCo + multi-crop": {"miou_7": 0.481, "miou_all": 0.351},
        "DenseCL": {"miou_7": 0.484, "miou_all": 0.351},
    }
    code, _, err = polyscene(*words, f"out={tmp_path / 'small'}", "size=[64, 64]", "baseline=null", "picture_rows=0")
    assert code == 0, err
    assert not read_results(tmp_path / "small" / "results.json").published


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("clusters=1", "clusters=1 must be between 2 and 254"),
        ("size=[50, 64]", "size=[50, 64] must be positive multiples of output_stride=8, for example [48, 64]"),
        ("batch_size=0", "batch_size=0 is too small"),
        ("data.classes=null", "data.classes is required"),
        ("data.classes=[one]", "must be at least two different names"),
        ("data.classes=[a, b]", "holds the value 2, but data.classes names 2 classes"),
        ("data.subset_classes=[green]", "'green' is not in data.classes"),
        ("data.labels=nowhere", "data.labels='nowhere' is not a folder"),
        ("data.train=null", "data.train is required"),
        ("data.test=s*", "no image of"),
        ("data.ignore=[0, 1, 2]", "no region of the training images has a label"),
        ("protocol=saliency", "needs data.saliency"),
        ("arch=resnet18", "is not resnet18"),
        ("weights=nowhere.pth", "nowhere.pth"),
        ("data.kind=voc2012", "data.root is required"),
    ],
)
def test_bad_input_is_one_line(polyscene, words, word, message):
    code, _, err = polyscene(*words(word))
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in err


def test_missing_files_are_found_before_any_work(polyscene, words, data, tmp_path):
    mask = data / "labels" / "test12.png"
    content = mask.read_bytes()
    mask.unlink()
    try:
        code, _, err = polyscene(*words())
    finally:
        mask.write_bytes(content)
    assert code == 2
    assert "test12.png" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["voc", "voc_saliency", "camvid", "quickstart"])
def test_shipped_configs_are_complete(name):
    given = ["weights=random", "data.root=x", "data.images=x", "data.labels=x", "data.saliency=x"]
    config = load_config(RetrieveConfig, f"retrieve/{name}", given)
    assert "???" not in to_yaml(config)


def camvid():
    places = [Path(os.environ["POLYSCENE_DATA"])] if "POLYSCENE_DATA" in os.environ else []
    places.append(Path(__file__).parents[3] / "shared" / "data")
    return next((p / "camvid_train.tar" for p in places if (p / "camvid_train.tar").is_file()), None)


@pytest.mark.skipif(camvid() is None, reason="needs camvid_train.tar in $POLYSCENE_DATA or ../shared/data")
def test_real_street_photos(polyscene, tmp_path):
    """Twelve frames of one drive label four of another; even random filters beat guessing."""
    kept = {"0016E5_0": 12, "0001TP_00": 4}
    with tarfile.open(camvid()) as archive:
        for prefix, count in kept.items():
            stems = sorted(Path(n).stem for n in archive.getnames() if f"/images/{prefix}" in n)
            for stem in stems[:: len(stems) // count][:count]:
                for name in (f"camvid_train/images/{stem}.jpg", f"camvid_train/labels/{stem}.png"):
                    archive.extract(name, tmp_path, filter="data")
    root = tmp_path / "camvid_train"
    code, _, err = polyscene(
        *("retrieve", "retrieve/camvid", "weights=random", "arch=resnet10t", f"out={tmp_path / 'out'}", "device=cpu"),
        *(f"data.images={root / 'images'}", f"data.labels={root / 'labels'}", "size=[96, 128]", "workers=0"),
        *("data.train=0016E5*", "data.test=0001TP*", "picture_rows=0"),
    )
    assert code == 0, err
    results = read_results(tmp_path / "out" / "results.json")
    assert results.values["pixel_accuracy"] > results.chance["pixel_accuracy"] + 0.1
    assert results.values["miou_all"] > results.chance["miou_all"]
