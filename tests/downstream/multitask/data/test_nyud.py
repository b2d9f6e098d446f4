import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.data import check
from polyscene.downstream.multitask.data.nyud import CLASS_NAMES, VERSIONS, open_nyud, tasks
from polyscene.runtime.errors import UserError


@pytest.fixture(params=VERSIONS)
def archive(request, nyud_archive):
    return request.param, *nyud_archive(request.param)


def test_every_archive_gives_the_truth_it_was_made_from(archive):
    version, root, truths = archive
    images = open_nyud(root, "train")
    assert images.title == f"NYUD ({version})"
    assert images.names == ("0001", "0004")
    for index, name in enumerate(images.names):
        sample, truth = images.read(index), truths[name]
        assert sample.name == name
        assert sample.image.dtype == torch.uint8
        # JPEG of the best quality changes a level or two.
        assert (sample.image.permute(1, 2, 0).int() - torch.from_numpy(truth.image).int()).abs().max() <= 4

        values, valid = sample.targets["segmentation"]
        assert torch.equal(valid, torch.from_numpy(truth.segmentation > 0))
        assert torch.equal(values[valid], torch.from_numpy(truth.segmentation.astype(np.int64))[valid] - 1)
        assert values.max() == 39  # 40 is the last class, other prop

        values, valid = sample.targets["depth"]
        assert torch.equal(values[0], torch.from_numpy(truth.depth))
        assert torch.equal(valid, torch.from_numpy(truth.depth > 0))

        values, valid = sample.targets["edges"]
        assert torch.equal(values[0], torch.from_numpy(truth.edge.astype(np.float32)))
        assert valid.all()

        values, valid = sample.targets["normals"]
        # A JPEG blurs the border of a hole within its block of 8x8 pixels; ours is one block.
        assert torch.equal(valid, torch.from_numpy(truth.normals).norm(dim=-1) > 0.5)
        assert torch.allclose(values[:, valid].norm(dim=0), torch.ones(int(valid.sum())), atol=1e-5)
        assert values[:, ~valid].abs().max() == 0
        tolerance = {"npy": 1e-6, "png": 0.01, "jpg": 0.05}[VERSIONS[version]["normals"]]
        assert np.abs(values.permute(1, 2, 0).numpy() - truth.normals).max() < tolerance


def test_worker_processes_can_have_the_images(nyud_archive):
    images = open_nyud(nyud_archive("atrc")[0], "train")
    again = pickle.loads(pickle.dumps(images))
    for name, target in images.read(1).targets.items():
        assert all(torch.equal(one, other) for one, other in zip(target, again.read(1).targets[name]))


def test_void_can_be_a_class_of_its_own(nyud_archive):
    root, truths = nyud_archive("mti")
    images = open_nyud(root, "val", specs=tasks(void_class=True))
    values, valid = images.read(0).targets["segmentation"]
    assert valid.all()
    assert torch.equal(values, torch.from_numpy(truths["0002"].segmentation.astype(np.int64)))
    assert images.tasks["segmentation"].channels == 41


def test_tasks_of_the_data_set():
    assert len(CLASS_NAMES) == 40
    assert CLASS_NAMES[31 - 1] == "person"
    assert {name: spec.channels for name, spec in tasks().items()} == {
        "segmentation": 40,
        "depth": 1,
        "normals": 3,
        "edges": 1,
    }
    assert tasks()["edges"].protocol == {"max_distance": 0.011}


def test_some_tasks_can_be_chosen_and_the_rest_need_not_exist(nyud_archive):
    root, _ = nyud_archive("astmt")
    for path in (root / "edge").iterdir():
        path.unlink()
    (root / "edge").rmdir()
    images = open_nyud(root, "val", only=["depth", "segmentation"])
    assert list(images.read(0).targets) == ["depth", "segmentation"]
    with pytest.raises(UserError, match="no folder edge, which task 'edges' needs"):
        open_nyud(root, "val")
    with pytest.raises(UserError, match="has no task 'semseg'; it has segmentation"):
        open_nyud(root, "val", only=["semseg"])


def test_the_root_may_be_what_holds_the_archive(nyud_archive):
    root, _ = nyud_archive("mti")
    assert open_nyud(root.parent, "val").root == root
    with pytest.raises(UserError, match="no gt_sets"):
        open_nyud(root.parent / "elsewhere", "val")


def test_a_mixture_of_archives_is_refused(nyud_archive):
    root, _ = nyud_archive("astmt")
    (root / "depth" / "0001.mat").rename(root / "depth" / "0001.npy")
    with pytest.raises(UserError, match="depth: npy.*fits no published NYUD archive") as caught:
        open_nyud(root, "train")
    assert "\n" not in str(caught.value)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("version", "file", "damage", "message"),
    [
        ("astmt", "depth/0001.mat", _truncate, "cannot read the MATLAB file"),
        ("mti", "depth/0001.npy", lambda p: np.save(p, np.array([{}], dtype=object)), "cannot read the npy file"),
        ("mti", "normals/0001.npy", lambda p: np.save(p, np.zeros((24, 40), np.float32)), r"shape \(24, 40\)"),
        ("mti", "edge/0001.npy", lambda p: np.save(p, np.full((24, 40), 255.0)), "from 255 to 255, expected 0 to 1"),
        ("mti", "segmentation/0001.png", _truncate, "cannot read the PNG"),
        (
            "mti",
            "segmentation/0001.png",
            lambda p: Image.fromarray(np.full((24, 40), 41, np.uint8)).save(p),
            "holds the class 40, expected 0 to 39",
        ),
        (
            "mti",
            "segmentation/0001.png",
            lambda p: Image.fromarray(np.zeros((24, 40, 3), np.uint8)).save(p),
            "holds colours",
        ),
        (
            "atrc",
            "edge/0001.png",
            lambda p: Image.fromarray(np.zeros((12, 40), np.uint8)).save(p),
            "task 'edges' is 12x40, the image 24x40",
        ),
        ("atrc", "gt_sets/train.txt", lambda p: p.write_text("0001\n0001\n"), "names '0001' more than once"),
        ("atrc", "gt_sets/train.txt", lambda p: p.write_text(" \n"), "names no image"),
        ("atrc", "gt_sets/train.txt", lambda p: p.unlink(), "No such file"),
    ],
)
def test_damaged_files_are_named_in_one_line(nyud_archive, version, file, damage, message):
    root, _ = nyud_archive(version)
    damage(root / file)
    with pytest.raises(UserError, match=message) as caught:
        open_nyud(root, "train").read(0)
    assert "\n" not in str(caught.value)
    assert Path(file).stem in str(caught.value)


def test_holes_that_are_not_a_number_are_not_valid(nyud_archive):
    root, _ = nyud_archive("mti")
    for folder, at in (("depth", np.s_[20, 30]), ("normals", np.s_[20, 30, 1])):
        path = root / folder / "0001.npy"
        stored = np.load(path)
        stored[at] = np.nan
        np.save(path, stored)
    for name, (values, valid) in open_nyud(root, "train", only=["depth", "normals"]).read(0).targets.items():
        assert not valid[20, 30], name
        assert torch.isfinite(values).all()


def test_the_built_in_scenes_are_a_nyud(scenes):
    images = open_nyud(scenes, "train")
    assert images.title == "NYUD (astmt)"
    assert check.check_images(images) == []
    assert check.check_images(open_nyud(scenes, "val")) == []


def _real_images():
    places = [Path(os.environ["POLYSCENE_DATA"])] if "POLYSCENE_DATA" in os.environ else []
    places.append(Path(__file__).parents[4] / ".." / "shared" / "data")
    return next((p / "nyud_two_images.tar" for p in places if (p / "nyud_two_images.tar").is_file()), None)


@pytest.mark.skipif(_real_images() is None, reason="nyud_two_images.tar is not at hand (POLYSCENE_DATA)")
def test_a_real_image_in_the_atrc_layout(tmp_path):
    with tarfile.open(_real_images()) as tar:
        tar.extractall(tmp_path, filter="data")
    real, root = tmp_path / "nyud_two_images" / "ExpNYUD_three", tmp_path / "NYUD_MT"
    for folder in ("images", "edge", "segmentation", "normals", "depth", "gt_sets"):
        (root / folder).mkdir(parents=True)
    (root / "gt_sets" / "val.txt").write_text("000433\n")
    (root / "images" / "000433.png").write_bytes((real / "000433.png").read_bytes())
    (root / "normals" / "000433.png").write_bytes((real / "norm_gt_000433.png").read_bytes())
    labels = np.array(Image.open(real / "segm_gt_000433.png"))  # 0..39, 255 = void
    Image.fromarray((labels + np.uint8(1)).astype(np.uint8)).save(root / "segmentation" / "000433.png")
    metres = np.array(Image.open(real / "depth_gt_000433.png")).astype(np.float32) / 5000
    np.save(root / "depth" / "000433.npy", metres)
    Image.fromarray(np.zeros(labels.shape, np.uint8)).save(root / "edge" / "000433.png")

    images = open_nyud(root, "val")
    assert check.check_images(images) == []
    targets = images.read(0).targets
    assert torch.equal(targets["segmentation"].valid, torch.from_numpy(labels != 255))
    assert torch.equal(targets["depth"].valid, torch.from_numpy(metres > 0))
    vectors, valid = targets["normals"]
    assert 0.7 < valid.float().mean() < 0.85  # a grey frame of 22% and a few holes
    # The axes are x right, y forward, z up: surfaces face the camera, and the two halves of a leg of the billiard
    # table face left and right.
    assert (vectors[1, valid] < 0).float().mean() > 0.95
    leg = vectors[:, 400:450, 338:386].mean(dim=1)
    assert leg[0, :10].mean() < -0.5
    assert leg[0, -10:].mean() > 0.5
    floor = vectors[:, 430:465, 420:520][:, valid[430:465, 420:520]].mean(dim=1)
    assert floor[2] > 0.9
