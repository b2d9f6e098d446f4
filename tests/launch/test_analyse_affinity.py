"""``polyscene analyse affinity``: what it finds, draws and refuses."""

import json

import numpy as np
import pytest

from polyscene.launch.analyse import analyse
from polyscene.runtime.errors import UserError
from polyscene.runtime.png import read_numbers
from polyscene.runtime.results import read_results


@pytest.fixture
def config(dense_words):
    """A config whose data set has segmentation, depth and saliency."""
    return str(dense_words("unused")[1])


@pytest.fixture
def quick():
    return ["dilations=[1, 4]", "workers=0"]


def test_a_config_is_analysed(config, quick, dense_folder, tmp_path, polyscene):
    out = tmp_path / "out"
    code, shown, _ = polyscene("analyse", "affinity", config, f"out={out}", *quick)
    assert code == 0
    assert "segmentation / depth" in shown
    found = read_results(out / "results.json")
    assert [metric.key for metric in found.metrics] == ["correspondence_1", "correspondence_4"]
    assert found.per_class["correspondence_4"]["weights"] == {
        "segmentation / depth": found.values["correspondence_4"]  # the only pair
    }
    assert found.protocol["images_counted"] == 12
    assert found.protocol["similar"]["depth"]["threshold"] == 0.1
    assert [picture.file for picture in found.pictures] == ["pictures/affinity.png"]
    assert (out / "pictures" / "affinity.png").stat().st_size > 1000

    # Similar pairs matched, horizontally and vertically and diagonally, from the files.
    both = either = 0
    for i in range(12):
        classes = read_numbers(dense_folder / "segmentation" / f"{i:02d}.png").astype(int)
        depth = np.load(dense_folder / "depth" / f"{i:02d}.npy").astype(np.float64)
        for dy, dx in ((0, 4), (4, 0), (4, 4), (4, -4)):
            rows, columns = np.mgrid[: 40 - dy, max(0, -dx) : 56 - max(0, dx)]
            a, b = (rows, columns), (rows + dy, columns + dx)
            one = classes[a] == classes[b]
            other = np.abs(depth[a] - depth[b]) < 0.1 * np.maximum(depth[a], depth[b])
            both, either = both + (one & other).sum(), either + (one | other).sum()
    assert found.per_class["similar_matched"]["weights"]["segmentation / depth, dilation 4"] == pytest.approx(
        both / either, rel=1e-5
    )


def test_tasks_lists_and_thresholds_can_be_chosen(config, quick, tmp_path, capsys):
    def measured(name, *words):
        out = tmp_path / name
        assert analyse("affinity", [config, f"out={out}", *quick, *words]) == 0
        return json.loads((out / "results.json").read_text())

    usual = measured("usual")
    strict = measured("strict", "thresholds={depth: 0.01}")
    assert strict["protocol"]["similar"]["depth"]["threshold"] == 0.01
    assert strict["correspondence_1"] != usual["correspondence_1"]
    held_out = measured("val", "split=val", "max_images=3", "tasks=[saliency, depth, segmentation]")
    assert held_out["protocol"]["images_counted"] == 3
    assert list(held_out["per_class"]["correspondence_1"]["weights"]) == [
        "saliency / depth",
        "saliency / segmentation",
        "depth / segmentation",
    ]
    assert "12 images of folder" in capsys.readouterr().err


def test_keys_with_a_dot_change_the_config(config, quick, dense_copy, tmp_path):
    other = dense_copy()
    (other / "train.txt").write_text("00\n01\n")
    out = tmp_path / "out"
    assert analyse("affinity", [config, f"out={out}", f"data.root={other}", *quick]) == 0
    assert json.loads((out / "results.json").read_text())["protocol"]["images_counted"] == 2


def test_the_config_of_a_run_is_analysed_into_its_folder(dense_run, quick, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((dense_run / "config.yaml").read_bytes())
    assert analyse("affinity", [str(run), *quick]) == 0
    assert (run / "analysis" / "affinity" / "results.json").is_file()


def test_a_task_without_affinity_is_left_out_or_refused_where_it_is_named(config, quick, tmp_path):
    task = tmp_path / "brightness.py"
    task.write_text(
        """
from dataclasses import replace
import torch
from polyscene.downstream.multitask.tasks import Target, depth


def read(root, name):
    return Target(torch.ones(1, 40, 56), torch.ones(40, 56, dtype=torch.bool))


def task():
    return replace(depth.task(), name="brightness", read=read, affinity=None)
"""
    )
    with pytest.raises(UserError, match="'brightness' does not say when two pixels are similar"):
        analyse("affinity", [config, f"out={tmp_path / 'out'}", *quick, f"tasks=[segmentation, depth, {task}]"])
    both = tmp_path / "both.yaml"
    both.write_text(f"extends: {config}\ntasks: [segmentation, depth, {task}]\n")
    assert analyse("affinity", [str(both), f"out={tmp_path / 'out'}", *quick]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["protocol"]["tasks"] == ["segmentation", "depth"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config is named; give polyscene analyse affinity CONFIG"),
        (["CONFIG", "multitask/scenes/rcm"], "one config, not at 2"),
        (["nowhere"], "nowhere"),
        (["CONFIG", "tasks=[depth]"], "depth cannot be compared with another"),
        (["CONFIG", "tasks=[depth, edges]"], "no folder edges"),
        (["CONFIG", "kernel=2"], "kernel=2"),
        (["CONFIG", "dilations=[]"], "dilations"),
        (["CONFIG", "dilations=[1, 56]"], "40x56, which has room for at most 55"),
        (["CONFIG", "thresholds={depth: 0}"], r"thresholds\.depth=0"),
        (["CONFIG", "thresholds={depth: much}"], r"thresholds\.depth=much"),
        (["CONFIG", "thresholds={segmentation: 1}"], "has no threshold"),
        (["CONFIG", "thresholds={edges: 1}"], "thresholds names 'edges'"),
        (["CONFIG", "max_images=0"], "max_images=0"),
        (["CONFIG", "data.rot=x"], "data.rot"),
        (["CONFIG", "batches=3"], "batches"),
    ],
)
def test_refusals_come_before_any_work(config, tmp_path, words, message):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        analyse("affinity", [*(config if word == "CONFIG" else word for word in words), f"out={out}", "workers=0"])
    assert not out.exists()


def test_a_config_needs_a_folder_for_the_results(config, quick):
    with pytest.raises(UserError, match="out is required"):
        analyse("affinity", [config, *quick])
