"""An image-level task beside dense ones, from the check to predictions for photos."""

import csv
import json

import numpy as np
import pytest
import torch

from polyscene.downstream.multitask.data.records import Sample
from polyscene.downstream.multitask.export.plain_file import load_plain
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.downstream.multitask.tasks import Target, depth, image_class
from polyscene.launch.multitask_pictures import draw_comparison

TASK = """
from polyscene.downstream.multitask.tasks import image_class

def task():
    return image_class.task("light", "Light", ("dark", "bright"), image_class.csv_labels({file!r}))
"""


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    """A task whose labels stand in a CSV file outside the data set; two images have none."""
    folder = tmp_path_factory.mktemp("task")
    labels = folder / "light.csv"
    labels.write_text("".join(f"{i:02d},{'' if i in (2, 13) else ('dark', 'bright')[i % 2]}\n" for i in range(16)))
    path = folder / "light.py"
    path.write_text(TASK.format(file=str(labels)))
    return path


@pytest.fixture
def words(dense_words, task_file):
    """``words(out, *more)``: the command line of a run with segmentation, depth and the task of the file."""

    def make(out, *more):
        return dense_words(
            out,
            f"tasks=[segmentation,depth,{task_file}]",
            "augmentation.size=[64,64]",
            "model.pyramid_width=8",
            "model.pad_net.width=8",
            *more,
        )

    return make


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("kind", ["mti_net", "pad_net", "rcm"])
def test_from_training_to_photos(kind, words, dense_folder, polyscene, tmp_path):
    out = tmp_path / "run"
    more = {"mti_net": ["evaluate.front_ends=true"], "rcm": ["model.rcm.response_init=false"]}.get(kind, [])
    code, printed, err = polyscene(*words(out, f"model.kind={kind}", *more))
    assert code == 0, err
    assert "light" in printed
    found = results(out)
    assert found["light_accuracy"] * 3 == pytest.approx(round(found["light_accuracy"] * 3))  # three of four have labels
    assert 0 <= found["light_mean_class_accuracy"] <= 1
    assert set(found["per_class"]["light_accuracy"]["weights"]) == {"dark", "bright"}
    assert ("front_end_4_depth_rmse" in found) == (kind == "mti_net")
    assert "front_end_4_light_accuracy" not in found
    assert (out / "pictures" / "prediction_01.png").stat().st_size > 1000
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss_light"] > 0 for line in lines)
    saved = load_model(out)
    assert saved.model.image_level == ("light",)
    assert saved.tasks["light"].classes == ("dark", "bright")

    photos = [dense_folder / "images" / f"{i:02d}.jpg" for i in (3, 5)]
    code, _, err = polyscene("predict", out, *photos, f"out={tmp_path / 'shown'}", "arrays=true")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "shown" / "predictions.csv").open()))
    assert [row["image"] for row in rows] == list(map(str, photos))
    for photo, row in zip(photos, rows):
        with np.load(tmp_path / "shown" / f"{photo.stem}.npz") as arrays:
            assert row["light"] == ("dark", "bright")[arrays["light"].argmax()]
            assert arrays["light"].sum() == pytest.approx(1)
        assert (tmp_path / "shown" / f"{photo.stem}_overview.png").exists()
        assert not (tmp_path / "shown" / f"{photo.stem}_light.png").exists()


def test_check_knows_it(words, polyscene, tmp_path):
    code, printed, err = polyscene("check", *words(tmp_path / "run", "model.kind=mti_net")[1:])
    assert code == 0, err
    assert "2 channels, judged by accuracy (classes 2)" in " ".join(printed.replace("│", " ").split())
    assert "no problem found" in err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["tasks=[FILE]", "model.kind=mti_net"], "all main tasks are image-level"),
        (
            ["tasks=[depth]", "auxiliary_tasks=[FILE]", "model.kind=pad_net"],
            "'light' is image-level, so that no front end",
        ),
    ],
)
def test_what_cannot_interact_is_refused(more, expected, words, task_file, polyscene, tmp_path):
    arguments = [word.replace("FILE", str(task_file)) for word in more]
    for command in (words(tmp_path / "run", *arguments), ["check", *words(tmp_path / "run", *arguments)[1:]]):
        code, _, err = polyscene(*command)
        assert code == 2
        assert expected in err
        assert "Traceback" not in err


def test_a_folded_network_gives_one_output_an_image(words, polyscene, tmp_path):
    out = tmp_path / "run"
    assert polyscene(*words(out, "model.kind=multi_task", "max_steps=1"))[0] == 0
    code, _, err = polyscene("export", out, tmp_path / "folded", "--fold", "--task", "light")
    assert code == 0, err
    (file,) = (tmp_path / "folded").iterdir()
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        expected = load_model(out).model(images, ("light",)).final["light"]
        torch.testing.assert_close(load_plain(file).network(images), expected, rtol=1e-4, atol=1e-5)


def test_pictures_say_prediction_and_truth_below_the_photos():
    specs = {"depth": depth.task(), "light": image_class.task("light", "Light", ("dark", "bright"), str)}
    metres, valid = torch.full((1, 40, 56), 2.0), torch.ones(40, 56, dtype=torch.bool)

    def sheet(predicted, true):
        light = Target(torch.tensor([[true or 0]]), torch.tensor([[true is not None]]))
        sample = Sample(
            "one", torch.full((3, 40, 56), 90, dtype=torch.uint8), {"depth": (metres, valid), "light": light}
        )
        return np.asarray(draw_comparison(sample, {"depth": metres[0], "light": torch.tensor([[predicted]])}, specs))

    right, wrong, unknown = sheet(1, 1), sheet(0, 1), sheet(1, None)
    middle = len(right) // 2
    assert right.shape == wrong.shape == unknown.shape  # the depth has lines below as well
    assert (right[:middle] != wrong[:middle]).any()
    assert (right[middle:] == wrong[middle:]).all()
    assert (right[:middle] == unknown[:middle]).all()
    assert (right[middle:] != unknown[middle:]).any()
