"""``polyscene propagate`` from the command line to results.json, label maps and pictures."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.video import labelling
from polyscene.downstream.video.masks import write_mask
from polyscene.downstream.video.scores import score_video
from polyscene.launch import propagate as command
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import read_results
from polyscene.runtime.weights import write_weights

SIZE = (48, 80)


def draw_video(frames, masks, count, step, labels):
    """Patches of noise that move over noise, one per label, and their masks."""
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    rng = np.random.default_rng(count)
    background = rng.integers(0, 120, (*SIZE, 3), dtype=np.uint8)
    patches = [rng.integers(100, 256, (20, 24, 3), dtype=np.uint8) for _ in labels]
    for t in range(count):
        picture, mask = background.copy(), np.zeros(SIZE, dtype=np.uint8)
        for i, (label, patch) in enumerate(zip(labels, patches)):
            top, left = 2 + 22 * i, 4 + step * t
            picture[top : top + 20, left : left + 24] = patch
            mask[top : top + 20, left : left + 24] = label
        Image.fromarray(picture).save(frames / f"{t:05d}.jpg", quality=95)
        if set(labels) == {255}:
            Image.fromarray(mask).save(masks / f"{t:05d}.png")
        else:
            write_mask(masks / f"{t:05d}.png", mask)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    draw_video(root / "ball", root / "masks", 5, 3, (255,))
    return root


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    for name, count, labels in (("bear", 4, (1,)), ("two-dogs", 5, (1, 2))):
        draw_video(root / "JPEGImages/480p" / name, root / "Annotations/480p" / name, count, 2, labels)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("bear\ntwo-dogs\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of another seed than the random baseline's."""
    from polyscene.launch.evaluation import random_weights

    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    write_weights(random_weights("resnet18", seed=5), path, "safetensors")
    return path


@pytest.fixture
def words(clip, weights):
    def make(out, *more):
        return [
            "propagate",
            "propagate/frames",
            f"weights={weights}",
            f"out={out}",
            f"data.frames={clip / 'ball'}",
            f"data.masks={clip / 'masks'}",
            "device=cpu",
            "workers=0",
            *more,
        ]

    return make


@pytest.fixture
def davis_words(davis, weights):
    def make(out, *more):
        return [
            "propagate", "propagate/davis2017", f"weights={weights}", f"out={out}", f"data.root={davis}",
            "device=cpu", "workers=2", *more,
        ]  # fmt: skip

    return make


def read_maps(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_a_folder_of_frames(tmp_path, clip, words, polyscene):
    out = tmp_path / "run"
    code, shown, err = polyscene(*words(out))
    assert code == 0, err
    assert "J&F" in shown
    evaluation = read_results(out / "results.json")
    assert [m.key for m in evaluation.metrics if m.better == "lower"] == ["j_decay", "f_decay"]
    assert set(evaluation.baseline) == {"random"}
    assert set(evaluation.per_class["j_mean"]) == {"weights", "random"}
    assert not evaluation.published
    # The numbers are those of the label maps on disk.
    truth = [np.uint8(np.asarray(Image.open(p)) > 0) for p in sorted((clip / "masks").iterdir())]
    for name, folder, values in (
        ("weights", "results", evaluation.values),
        ("random", "results_random", evaluation.baseline["random"]),
    ):
        maps = read_maps(out / folder / "ball")
        assert np.array_equal(maps[0], truth[0])
        again = score_video(maps, truth, (1,))[1]
        assert values == pytest.approx(again)
        assert evaluation.per_class["jf_mean"][name] == {"ball_1": pytest.approx(again["jf_mean"])}
    assert evaluation.values["jf_mean"] != evaluation.baseline["random"]["jf_mean"]
    assert evaluation.values["j_mean"] > 0.3
    for picture in evaluation.pictures:
        assert (out / picture.file).stat().st_size > 0
    assert {Path(p.file).suffix for p in evaluation.pictures} == {".png", ".gif"}
    code, _, err = polyscene(*words(out))
    assert code == 0
    assert "already finished" in err
    code, _, err = polyscene(*words(out, "top_k=3"))
    assert code == 2
    assert "top_k: 10 -> 3" in err


def test_only_the_first_mask(tmp_path, clip, words, polyscene):
    out = tmp_path / "run"
    code, shown, err = polyscene(*words(out, f"data.masks={clip / 'masks' / '00000.png'}", "baseline=null"))
    assert code == 0, err
    evaluation = read_results(out / "results.json")
    assert evaluation.metrics == []
    assert "no masks to compare with" in " ".join(shown.split())
    assert len(read_maps(out / "results" / "ball")) == 5
    assert not (out / "results_random").exists()
    assert len(list((out / "pictures").iterdir())) == 2


def test_davis(tmp_path, davis, davis_words, polyscene):
    out = tmp_path / "run"
    code, _, err = polyscene(*davis_words(out))
    assert code == 0, err
    evaluation = read_results(out / "results.json")
    rows = evaluation.per_class["f_mean"]["weights"]
    assert list(rows) == ["bear_1", "two-dogs_1", "two-dogs_2"]
    assert evaluation.values["f_mean"] == pytest.approx(sum(rows.values()) / 3)  # over objects, not over videos
    assert len(evaluation.published) == 5
    by_name = {row.name: row.values for row in evaluation.published}
    assert by_name["MoCo + multi-crop, COCO"] == {"jf_mean": 0.6685, "j_mean": 0.643, "f_mean": 0.694}
    for name in ("bear", "two-dogs"):
        frames = {p.stem for p in (davis / "JPEGImages/480p" / name).iterdir()}
        assert {p.stem for p in (out / "results" / name).iterdir()} == frames
        for path in (out / "results" / name).iterdir():
            assert Image.open(path).mode == "P"
    code, _, err = polyscene(*davis_words(tmp_path / "one", "data.sequences=[bear]"))
    assert code == 0, err
    assert not read_results(tmp_path / "one" / "results.json").published  # not the same data
    code, _, err = polyscene(*davis_words(tmp_path / "other", "top_k=5", "baseline=null"))
    assert code == 0, err
    assert not read_results(tmp_path / "other" / "results.json").published  # not the same protocol


def test_a_killed_evaluation_goes_on_at_its_sequence(tmp_path, monkeypatch, davis_words, polyscene):
    labelled = []

    def spy(network, video, *arguments, **options):
        labelled.append(video.name)
        if len(labelled) == 4:  # the baseline's turn in the second video
            raise UserError("power failure")
        yield from labelling.label_video(network, video, *arguments, **options)

    monkeypatch.setattr(command, "label_video", spy)
    out = tmp_path / "run"
    code, _, err = polyscene(*davis_words(out))
    assert code == 2
    assert "power failure" in err
    before = (out / "results" / "bear" / "00003.png").stat().st_mtime_ns
    assert not (out / "results.json").exists()
    code, _, err = polyscene(*davis_words(out, "workers=0"))
    assert code == 0, err
    assert labelled == ["bear"] * 2 + ["two-dogs"] * 4
    assert (out / "results" / "bear" / "00003.png").stat().st_mtime_ns == before
    whole = tmp_path / "whole"
    assert polyscene(*davis_words(whole))[0] == 0
    one, other = (json.loads((run / "results.json").read_text()) for run in (out, whole))
    assert one == other


def test_scores_of_other_weights_are_not_taken(tmp_path, davis_words, polyscene):
    """A run directory named as weights may have been trained on since the evaluation was killed."""
    out, short = tmp_path / "run", ("data.sequences=[bear]", "baseline=null")
    assert polyscene(*davis_words(out, *short))[0] == 0
    expected = (out / "results.json").read_text()
    for record in (out / "scores").iterdir():
        content = json.loads(record.read_text())
        content["weights"]["weights"] = "0" * 16
        content["scores"]["weights"]["1"]["j_mean"] = 0.123
        record.write_text(json.dumps(content))
    (out / "results.json").unlink()
    assert polyscene(*davis_words(out, *short))[0] == 0
    assert (out / "results.json").read_text() == expected


def test_overwrite_starts_afresh(tmp_path, davis_words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*davis_words(out))[0] == 0
    code, _, err = polyscene(*davis_words(out, "data.sequences=[two-dogs]", "overwrite=true", "baseline=null"))
    assert code == 0, err
    assert [p.name for p in (out / "results").iterdir()] == ["two-dogs"]
    assert not (out / "results_random").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["top_k=0"], "top_k=0 is too small"),
        (["radius=0.5"], "radius=0.5 is too small"),
        (["context=-1"], "context=-1 is too small"),
        (["temperature=0"], "temperature=0.0 must be greater than 0"),
        (["data.frames=null"], "data.kind=frames needs data.frames"),
        (["data.root=/somewhere"], "data.root is a key of data.kind=davis2017"),
        (["data.sequences=[bear]"], "data.sequences names sequences of data.kind=davis2017"),
        (["data.frames=/nowhere"], "folder of frames '/nowhere' does not exist"),
        (["data.masks=/nowhere"], "folder of masks '/nowhere' does not exist"),
        (["arch=resnet50"], "resnet50"),
        (["weights=/nowhere.pth"], "/nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(tmp_path, words, polyscene, more, message):
    code, _, err = polyscene(*words(tmp_path / "run", *more))
    assert code == 2
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_real_video(tmp_path, polyscene):
    """The first frames of bmx_trees: even random features still find the rider."""
    data = Path(os.environ.get("POLYSCENE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not (data / "bmx_trees.tar").exists():
        pytest.skip("no bmx_trees.tar in $POLYSCENE_DATA")
    for name in ("bmx-trees", "bmx-trees_mask"):
        (tmp_path / name).mkdir()
    with tarfile.open(data / "bmx_trees.tar") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.stem.isdigit() and int(path.stem) < 5:
                (tmp_path / path.parent.name / path.name).write_bytes(archive.extractfile(member).read())
    code, _, err = polyscene(
        "propagate", "propagate/frames", "weights=random", "arch=resnet18", f"out={tmp_path / 'run'}", "device=cpu",
        f"data.frames={tmp_path / 'bmx-trees'}", f"data.masks={tmp_path / 'bmx-trees_mask'}",
    )  # fmt: skip
    assert code == 0, err
    evaluation = read_results(tmp_path / "run" / "results.json")
    assert evaluation.baseline == {}
    assert evaluation.values["jf_mean"] > 0.5
