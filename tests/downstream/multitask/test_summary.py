"""results.json of multi-task runs: means, deviations, Delta, single-task runs."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import make_images, specs

from polyscene.downstream.multitask.summary import make_evaluation, scores_protocol, single_task_results
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
