"""The written data set: reproducible, readable by the published layouts' readers, and split as documented."""

import filecmp
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from polyscene.downstream.scenes.build import plan, write_scenes
from polyscene.downstream.scenes.classes import CLASSES, VOC_NAMES
from polyscene.runtime.errors import UserError

COUNT, SIZE = 16, (48, 64)
SIDED = ("uarm", "larm", "hand", "uleg", "lleg", "foot")
PARTS = {"head", "hair", "neck", "torso"} | {side + part for side in "lr" for part in SIDED}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    summary = write_scenes(out, count=COUNT, size=SIZE, seed=3, workers=1)
    return out, summary


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def lines(path):
    return path.read_text().split("\n")[:-1]


def test_two_workers_write_the_same_bytes(scenes, tmp_path):
    out, _ = scenes
    calls = []
    write_scenes(tmp_path / "again", count=COUNT, size=SIZE, seed=3, workers=2, progress=lambda *a: calls.append(a))
    names = tree(out)
    assert names == tree(tmp_path / "again")
    equal, different, errors = filecmp.cmpfiles(out, tmp_path / "again", names, shallow=False)
    assert (len(equal), different, errors) == (len(names), [], [])
    assert [total for _, total in calls] == [COUNT] * len(calls)
    assert calls[-1] == (COUNT, COUNT)
    assert sorted(done for done, _ in calls) == [done for done, _ in calls]


def test_another_seed_draws_other_pictures(scenes, tmp_path):
    out, _ = scenes
    write_scenes(tmp_path / "other", count=4, size=SIZE, seed=4, workers=1)
    first = next((out / "images" / "train" / "room_000").glob("*.jpg"))
    other = next((tmp_path / "other" / "images" / "train" / "room_000").glob("*.jpg"))
    assert first.read_bytes() != other.read_bytes()


def test_image_folder_has_count_pictures_and_the_same_classes_in_both_splits(scenes):
    from torchvision.datasets import ImageFolder

    out, summary = scenes
    train, held = ImageFolder(out / "images" / "train"), ImageFolder(out / "images" / "val")
    assert train.classes == held.classes
    assert len(train.classes) == summary.rooms
    assert (len(train), len(held)) == (summary.train, summary.held_out)
    assert len(train) + len(held) == COUNT == summary.images
    assert train[0][0].size == SIZE[::-1]


@pytest.mark.parametrize("count", [4, 5, 9, 16, 23, 100, 600, 601])
def test_plan_has_count_pictures_and_holds_out_cameras_and_lightings(count):
    rooms = plan(count)
    assert sum(map(len, rooms)) == count
    names = [shot.name for room in rooms for shot in room]
    assert len(set(names)) == count
    for room in rooms:
        train, held = ([s for s in room if s.split == split] for split in ("train", "val"))
        assert train
        assert held
        assert {s.camera for s in train}.isdisjoint(s.camera for s in held)
        assert {s.lighting for s in train}.isdisjoint(s.lighting for s in held)
        assert len({(s.camera, s.lighting) for s in room}) == len(room)


def test_default_plan_is_forty_places_of_twelve_and_three():
    rooms = plan(600)
    assert len(rooms) == 40
    assert all([s.split for s in room] == ["train"] * 12 + ["val"] * 3 for room in rooms)


def test_nyud_layout(scenes):
    out, _ = scenes
    root = out / "NYUD_MT"
    train, val = (lines(root / "gt_sets" / f"{split}.txt") for split in ("train", "val"))
    assert train
    assert val
    assert set(train).isdisjoint(val)
    assert all(name.startswith("room_") for name in train + val)  # no streets
    for name in train + val:
        assert Image.open(root / "images" / f"{name}.jpg").size == SIZE[::-1]
        edge = np.asarray(Image.open(root / "edge" / f"{name}.png"))
        assert edge.shape == SIZE
        assert set(np.unique(edge)) <= {0, 255}
        assert 0.005 < (edge > 0).mean() < 0.4
        classes = scipy.io.loadmat(root / "segmentation" / f"{name}.mat")["segmentation"]
        assert classes.shape == SIZE
        assert classes.min() >= 1  # a room has no void
        assert classes.max() <= 40
        depth = scipy.io.loadmat(root / "depth" / f"{name}.mat")["depth"]
        assert depth.shape == SIZE
        assert depth.dtype == np.float32
        assert depth.min() > 0.05
        assert depth.max() < 12
        normals = 2 * np.asarray(Image.open(root / "normals" / f"{name}.jpg"), dtype=np.float64) / 255 - 1
        assert normals.shape == (*SIZE, 3)
        assert abs(np.median(np.linalg.norm(normals, axis=-1)) - 1) < 0.03


def test_pascal_layout(scenes):
    out, _ = scenes
    root = out / "PASCAL_MT"
    train, val = (lines(root / "ImageSets" / "Context" / f"{split}.txt") for split in ("train", "val"))
    assert set(train).isdisjoint(val)
    assert len(train) + len(val) == COUNT
    context = {entry.context for entry in CLASSES}
    for name in train + val:
        assert (root / "JPEGImages" / f"{name}.jpg").is_file()
        labels = scipy.io.loadmat(root / "pascal-context" / "trainval" / f"{name}.mat")["LabelMap"]
        assert labels.shape == SIZE
        assert set(np.unique(labels)) <= context
        picture = Image.open(root / "semseg" / "VOC12" / f"{name}.png")
        assert picture.mode == "P"
        assert set(np.unique(np.asarray(picture))) <= {*range(21), 255}
        saliency = np.asarray(Image.open(root / "sal_distill" / f"{name}.png"))
        assert saliency.shape == SIZE
        assert set(np.unique(saliency)) <= {0, 255}
        normals = 2 * np.asarray(Image.open(root / "normals_distill" / f"{name}.png"), dtype=np.float64) / 255 - 1
        length = np.linalg.norm(normals, axis=-1)
        sky = labels == 360
        np.testing.assert_allclose(length[~sky], 1, atol=0.02)
        assert (length[sky] < 0.01).all()


def test_human_parts_read_as_pascal_part(scenes):
    # The access pattern of the published data set code: anno -> objects -> (class, class_ind, mask, parts).
    out, _ = scenes
    root = out / "PASCAL_MT"
    persons = 0
    for split in ("train", "val"):
        listed = json.loads((root / "ImageSets" / "Parts" / f"{split}.txt").read_text())
        assert list(listed) == lines(root / "ImageSets" / "Context" / f"{split}.txt")
        for name, kinds in listed.items():
            objects = scipy.io.loadmat(root / "human_parts" / f"{name}.mat")["anno"][0][0][1][0]
            assert [int(obj[1][0][0]) for obj in objects] == kinds
            semseg = np.asarray(Image.open(root / "semseg" / "VOC12" / f"{name}.png"))
            for obj in objects:
                kind, mask = int(obj[1][0][0]), obj[2].astype(bool)
                assert str(obj[0][0]) == VOC_NAMES[kind]
                assert mask.shape == SIZE
                assert set(np.unique(semseg[mask])) <= {kind, 255}
                if kind != 15:
                    assert len(obj[3]) == 0
                    continue
                persons += 1
                parts = {str(part[0][0]): part[1].astype(bool) for part in obj[3][0]}
                assert set(parts) <= PARTS
                np.testing.assert_array_equal(sum(p.astype(int) for p in parts.values()), mask.astype(int))
    assert persons > 0


def test_voc_layout_reads_through_torchvision(scenes):
    from torchvision.datasets import VOCDetection

    out, summary = scenes
    total = 0
    for split, expected in (("trainval", summary.train), ("test", summary.held_out)):
        data = VOCDetection(str(out), year="2007", image_set=split)
        assert len(data) == expected
        main = out / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
        names = lines(main / f"{split}.txt")
        flags = {
            path.name.removesuffix(f"_{split}.txt"): dict(line.split() for line in lines(path))
            for path in main.glob(f"*_{split}.txt")
        }
        assert set(flags) <= set(VOC_NAMES[1:])
        for k, name in enumerate(names):
            image, target = data[k]
            assert image.size == SIZE[::-1]
            objects = [obj for obj in target["annotation"].get("object", []) if obj]
            total += len(objects)
            for label, listed in flags.items():
                difficult = [obj["difficult"] for obj in objects if obj["name"] == label]
                assert listed[name] == ("-1" if not difficult else "1" if "0" in difficult else "0")
            for obj in objects:
                box = {key: int(value) for key, value in obj["bndbox"].items()}
                assert 1 <= box["xmin"] <= box["xmax"] <= SIZE[1]
                assert 1 <= box["ymin"] <= box["ymax"] <= SIZE[0]
    assert total > COUNT


def test_pictures_share_their_bytes(scenes):
    out, _ = scenes
    picture = next((out / "NYUD_MT" / "images").glob("*.jpg"))
    same = [p for p in out.rglob(picture.name) if p.parent.name != "normals"]
    assert len(same) == 4
    assert len({p.read_bytes() for p in same}) == 1
    if os.stat(picture).st_nlink > 1:
        assert len({os.stat(p).st_ino for p in same}) == 1


def test_readme_contact_sheet_and_manifest(scenes):
    out, summary = scenes
    assert Image.open(summary.contact_sheet).width > 6 * SIZE[1]
    text = (out / "README.txt").read_text()
    assert "2 * x / 255 - 1" in text
    manifest = json.loads((out / "scenes.json").read_text())
    assert len(manifest["scenes"]) == COUNT
    assert not (out / "scenes.partial.json").exists()


def test_a_complete_folder_is_left_alone(scenes):
    out, _ = scenes
    before = os.stat(out / "scenes.json").st_mtime_ns
    again = write_scenes(out, count=COUNT, size=SIZE, seed=3, workers=2)
    assert again.already_complete
    assert os.stat(out / "scenes.json").st_mtime_ns == before


def test_other_arguments_in_the_same_folder_are_refused_by_name(scenes):
    out, _ = scenes
    with pytest.raises(UserError, match=r"seed=3 \(asked: 5\)"):
        write_scenes(out, count=COUNT, size=SIZE, seed=5)


def test_an_interrupted_folder_is_completed(scenes, tmp_path):
    out, _ = scenes
    arguments = json.loads((out / "scenes.json").read_text())["arguments"]
    half = tmp_path / "half"
    broken = half / "images" / "train" / "room_000" / "room_000_c00_l00.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"torn")
    (half / "scenes.partial.json").write_text(json.dumps({"arguments": arguments}))
    assert not write_scenes(half, count=COUNT, size=SIZE, seed=3, workers=1).already_complete
    assert tree(half) == tree(out)
    assert broken.read_bytes() == (out / broken.relative_to(half)).read_bytes()


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="photos: is not empty and not a scenes folder"):
        write_scenes(tmp_path / "photos")
    with pytest.raises(UserError, match=r"a\.jpg: is a file"):
        write_scenes(tmp_path / "photos" / "a.jpg")
    with pytest.raises(UserError, match="cannot be written"):
        write_scenes(tmp_path / "photos" / "a.jpg" / "below")
    assert tree(tmp_path) == ["photos/a.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 3}, "count=3: give a whole number of at least 4"),
        ({"count": 10.5}, "count=10.5"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
        ({"size": (192,)}, r"size=\[192\]: give \[height, width\]"),
        ({"size": (8, 256)}, "between 32 and 4096"),
        ({"size": 192}, "size="),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_scenes(tmp_path / "never", **arguments)
    assert not (tmp_path / "never").exists()
