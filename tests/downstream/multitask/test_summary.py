"""results.json of multi-task runs: means, deviations, Delta, single-task runs, published rows."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import make_images, specs

from polyscene.downstream.multitask.data import nyud, pascal_context
from polyscene.downstream.multitask.published import published_rows
from polyscene.downstream.multitask.summary import make_evaluation, scores_protocol, single_task_results
from polyscene.downstream.multitask.tasks import saliency
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import read_results, write_results

TASKS = {name: specs()[name] for name in ("segmentation", "depth")}


def scores(miou=0.35, rmse=0.6, **more):
    return {
        "segmentation": {"miou": miou, "pixel_accuracy": 0.7},
        "depth": {"rmse": rmse, "abs_rel": 0.2, "delta1": 0.8, **more},
    }


def evaluation(found, tasks=TASKS, **options):
    options = {"title": "NYUD", "subject": "runs/rcm", "protocol": {"seed": 0}, **options}
    return make_evaluation(found, tasks, **options)


def test_one_run_has_its_own_numbers_the_main_ones_first(tmp_path):
    made = evaluation([scores()], single={"segmentation": 0.4, "depth": 0.5})
    assert [metric.key for metric in made.metrics] == [
        *("segmentation_miou", "depth_rmse", "delta"),
        *("segmentation_pixel_accuracy", "depth_abs_rel", "depth_delta1"),
    ]
    assert made.values["segmentation_miou"] == 0.35
    # Thesis, equation 2.2 by hand: ((0.35 - 0.4) / 0.4 - (0.6 - 0.5) / 0.5) / 2
    assert made.values["delta"] == pytest.approx((-0.125 - 0.2) / 2)
    assert made.deviation == {}
    shown = {metric.key: (metric.unit, metric.better) for metric in made.metrics}
    assert shown["segmentation_miou"] == ("%", "higher")
    assert shown["depth_rmse"] == ("m", "lower")
    assert shown["depth_abs_rel"] == ("%", "lower")
    assert shown["depth_delta1"] == ("%", "higher")
    assert read_results(write_results(tmp_path, made)) == made


def test_several_seeds_have_mean_and_deviation():
    miou, rmse = [0.30, 0.36, 0.33], [0.60, 0.58, 0.65]
    single = {"segmentation": 0.4, "depth": 0.5}
    made = evaluation([scores(m, r) for m, r in zip(miou, rmse)], single=single)
    assert made.values["segmentation_miou"] == pytest.approx(np.mean(miou))
    assert made.deviation["segmentation_miou"] == pytest.approx(np.std(miou, ddof=1))
    assert made.deviation["depth_rmse"] == pytest.approx(np.std(rmse, ddof=1))
    deltas = [((m - 0.4) / 0.4 - (r - 0.5) / 0.5) / 2 for m, r in zip(miou, rmse)]
    assert made.values["delta"] == pytest.approx(np.mean(deltas))
    assert made.deviation["delta"] == pytest.approx(np.std(deltas, ddof=1))
    assert made.deviation.keys() == made.values.keys()


def test_numbers_with_nothing_behind_them():
    made = evaluation([scores(delta1=math.nan), scores()])
    assert "depth_delta1" not in made.values
    with pytest.raises(UserError, match="task 'depth' has no rmse"):
        evaluation([scores(rmse=math.nan)])
    with pytest.raises(ValueError, match="no scores"):
        evaluation([])


def test_class_scores_are_averaged_over_the_seeds_in_which_they_occur():
    tables = [{"segmentation": {"bed": 0.2, "sofa": 0.4}}, {"segmentation": {"bed": 0.4}}]
    made = evaluation([scores(), scores()], class_scores=tables)
    assert made.per_class == {"segmentation_miou": {"weights": {"bed": pytest.approx(0.3), "sofa": 0.4}}}


# Single-task runs


@pytest.fixture
def protocol(tmp_path):
    images = make_images(tmp_path / "made", tasks=("segmentation", "depth"))

    def make(kind="single", **changes):
        return {**scores_protocol(images, kind="nyud", arch="resnet18", model_kind=kind), **changes}

    return make


def single_run(folder, task, value, protocol):
    spec = TASKS[task]
    found = evaluation([{task: {spec.metric: value}}], {task: spec}, protocol=protocol)
    folder.mkdir()
    write_results(folder, found)
    return folder


def test_single_task_results_are_looked_up_in_their_runs(tmp_path, protocol):
    runs = [
        single_run(tmp_path / "depth", "depth", 0.61, protocol()),
        single_run(tmp_path / "segmentation", "segmentation", 0.36, protocol()),
    ]
    assert single_task_results(runs, TASKS, protocol("rcm")) == {"segmentation": 0.36, "depth": 0.61}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"kind": "multi_task"}, "kind 'multi_task'; Delta needs results of model.kind=single"),
        ({"images": 99}, "images = 99, this run with 8"),
        ({"arch": "resnet50"}, "arch = resnet50, this run with resnet18"),
        ({"stretch": [480, 640]}, "stretch"),
        ({"task_protocols": {"depth": {"depth": "rcm"}}}, "judges 'depth' by"),
    ],
)
def test_other_protocols_are_refused(tmp_path, protocol, theirs, message):
    run = single_run(tmp_path / "depth", "depth", 0.61, protocol(**theirs))
    with pytest.raises(UserError, match=message) as caught:
        single_task_results([run], {"depth": TASKS["depth"]}, protocol("rcm"))
    assert "\n" not in str(caught.value)


def test_missing_and_doubled_results(tmp_path, protocol):
    first = single_run(tmp_path / "a", "depth", 0.61, protocol())
    second = single_run(tmp_path / "b", "depth", 0.62, protocol())
    with pytest.raises(UserError, match="no single-task result of 'segmentation'"):
        single_task_results([first], TASKS, protocol("rcm"))
    with pytest.raises(UserError, match="both have single-task results of 'depth'"):
        single_task_results([first, second], {"depth": TASKS["depth"]}, protocol("rcm"))
    with pytest.raises(UserError, match="cannot read"):
        single_task_results([tmp_path / "nothing"], TASKS, protocol("rcm"))


# Published rows


def test_rcm_on_nyud():
    tasks = nyud.tasks(depth_protocol="rcm")
    rows = {row.name: row for row in published_rows("nyud", 654, "resnet18", tasks)}
    assert rows["RCM"].values == {
        "edges_odsf": 0.6844,
        "segmentation_miou": 0.342,
        "normals_mean": 22.41,
        "depth_rmse": 0.57,
        "delta": -0.0148,
    }
    assert "delta" not in rows["single-task"].values
    assert rows["RCM"].source == "RCM (ECCV 2020), table 4"
    # The printed drops follow from the rows (equation 4 of the paper), up to their two digits.
    single = rows["single-task"].values
    for name in ("Series RA", "Parallel RA", "RCM"):
        changes = [
            (row - single[key]) / single[key] * (1 if key in ("edges_odsf", "segmentation_miou") else -1)
            for key, row in rows[name].values.items()
            if key != "delta"
        ]
        assert rows[name].values["delta"] == pytest.approx(np.mean(changes), abs=0.005)


def test_rcm_on_pascal_drops_follow_from_the_rows():
    tasks = pascal_context.tasks()
    rows = {row.name: row for row in published_rows("pascal", 5105, "resnet18", tasks)}
    assert len(rows) == 11
    single = rows.pop("single-task").values
    assert single["parts_miou"] == 0.5969
    for name, row in rows.items():
        changes = [
            (row.values[key] - value) / value * (-1 if key == "normals_mean" else 1) for key, value in single.items()
        ]
        assert row.values["delta"] == pytest.approx(np.mean(changes), abs=2e-4), name


def test_only_what_was_measured_the_same_way():
    tasks = nyud.tasks()  # depth as in the survey
    rows = published_rows("nyud", 654, "resnet18", tasks)
    assert all("depth_rmse" not in row.values and "delta" not in row.values for row in rows)
    assert all("normals_mean" in row.values for row in rows)
    assert published_rows("nyud", 81, "resnet18", tasks) == ()  # not the whole split
    assert published_rows("nyud", 654, "resnet34", tasks) == ()
    assert published_rows("folder", 654, "resnet18", tasks) == ()
    some = {name: tasks[name] for name in ("segmentation", "depth")}
    thesis = published_rows("nyud", 654, "resnet50", some)
    assert [row.source for row in thesis] == ["thesis table 7.10"] * 4
    assert thesis[-1].values == {"segmentation_miou": 0.452, "depth_rmse": 0.581}
    other = {"saliency": replace(saliency.task("atrc"), name="saliency")}
    assert published_rows("pascal", 5105, "resnet18", other) == ()
