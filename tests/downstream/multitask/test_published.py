"""Rows of papers: only beside runs of the same protocol, in the unit of results.json, and consistent in themselves."""

from dataclasses import replace

import numpy as np
import pytest

from polyscene.downstream.multitask.data import nyud, pascal_context
from polyscene.downstream.multitask.metric_labels import metric_of
from polyscene.downstream.multitask.published import published_rows
from polyscene.downstream.multitask.published_tables import TABLES
from polyscene.downstream.multitask.tasks import saliency

SURVEY = {"nyud": nyud.tasks(), "pascal": pascal_context.tasks(saliency_protocol="survey")}
RCM = {"nyud": nyud.tasks(depth_protocol="rcm"), "pascal": pascal_context.tasks()}
IMAGES = {"nyud": 654, "pascal": 5105}
HRNET18 = "hrnet_w18_small_v2"


def rows(source, dataset, arch, tasks=None, multi_scale=False):
    """Name -> values of the rows of one table beside a run of these tasks; all of the table by default."""
    specs = (RCM if source.startswith("RCM") else SURVEY)[dataset]
    specs = specs if tasks is None else {task: specs[task] for task in tasks}
    found = published_rows(dataset, IMAGES[dataset], arch, specs, multi_scale=multi_scale)
    return {row.name: row.values for row in found if row.source == source}


def table_rows(table):
    return rows(table.source, table.dataset, table.arch, table.columns, table.multi_scale)


def test_a_row_in_the_unit_of_results():
    assert rows("RCM (ECCV 2020), table 4", "nyud", "resnet18")["RCM"] == {
        "edges_odsf": 0.6844,
        "segmentation_miou": 0.342,
        "normals_mean": 22.41,
        "depth_rmse": 0.57,
        "delta": -0.0148,  # the paper prints a drop of 1.48%
    }
    thesis = rows("thesis table 5.1a", "nyud", HRNET18, ("segmentation", "depth"), multi_scale=True)
    assert thesis["MTI-Net (N+E)"] == {"segmentation_miou": 0.3749, "depth_rmse": 0.607, "delta": 0.1091}
    assert "delta" not in thesis["single-task"]


# Table -> how far printed mean changes are from those of the printed scores, in percent points: rounding to one digit
# or two; the rows of table 5.1b are up to 0.28 apart.
ROUNDING = {"RCM (ECCV 2020), table 4": 0.5, "thesis table 5.4": 0.35, "thesis table 5.1b": 0.3}
# Rows whose printed mean change is not that of their scores -> what the scores give.
INCONSISTENT = {
    ("thesis table 5.4", "PAD-Net"): -3.11,
    ("thesis table 6.2b", "GradNorm"): 0.68,
}
SINGLES = {
    ("thesis table 5.2", HRNET18): "thesis table 5.1a",
    ("thesis table 5.3", HRNET18): "thesis table 5.1a",
    ("thesis table 5.4", HRNET18): "thesis table 5.1b",
}
PRINTED = [table for table in TABLES if any(row[-1] is not None and row[1] is not None for row in table.rows)]


@pytest.mark.parametrize("table", PRINTED, ids=lambda table: f"{table.source} {table.arch}")
def test_printed_changes_follow_from_the_scores(table):
    """Equation 2.2 of the thesis (equation 4 of RCM) with the single-task row of the table."""
    source = SINGLES.get((table.source, table.arch), table.source)
    found = rows(source, table.dataset, table.arch, table.columns, table.multi_scale)
    single = next(values for name, values in found.items() if name.startswith("single-task"))
    for name, *numbers, printed in table.rows:
        if printed is None:
            continue
        tasks = [task for task, number in zip(table.columns, numbers) if number is not None]
        values = rows(table.source, table.dataset, table.arch, tasks, table.multi_scale)[name]
        changes = [
            (score / single[key] - 1) * (-1 if key.startswith(("normals", "depth")) else 1)
            for key, score in values.items()
            if key in single
        ]
        rounding = ROUNDING.get(table.source, 0.15)
        gain = printed if table.gains else -printed
        assert values["delta"] == pytest.approx(gain / 100)
        if (table.source, name) in INCONSISTENT:
            assert abs(gain - 100 * np.mean(changes)) > rounding
            gain, rounding = INCONSISTENT[table.source, name], 0.005
        assert gain == pytest.approx(100 * np.mean(changes), abs=rounding), name


def test_every_row_can_be_shown():
    """Each has values under keys that results.json has for its tasks."""
    for table in TABLES:
        found = table_rows(table)
        assert list(found) == [row[0] for row in table.rows]
        specs = (RCM if table.source.startswith("RCM") else SURVEY)[table.dataset]
        main = {metric_of(spec, spec.metric).key for spec in specs.values()}
        assert all(set(values) <= {*main, *table.more, "delta"} for values in found.values())


def test_only_what_was_measured_the_same_way():
    tasks = SURVEY["nyud"]
    found = published_rows("nyud", 654, "resnet18", tasks)
    assert all("depth_rmse" not in row.values and "delta" not in row.values for row in found)
    assert all("normals_mean" in row.values for row in found)
    assert published_rows("nyud", 81, "resnet18", tasks) == ()  # not the whole split
    assert published_rows("nyud", 654, "resnet18", tasks, "train") == ()
    assert published_rows("nyud", 654, "resnet34", tasks) == ()
    assert published_rows("folder", 654, "resnet18", tasks) == ()
    other = {"saliency": replace(saliency.task("atrc"), name="saliency")}
    assert published_rows("pascal", 5105, "resnet18", other) == ()
    some = {name: tasks[name] for name in ("segmentation", "depth")}
    sources = [row.source for row in published_rows("nyud", 654, "resnet50", some)]
    assert sources == ["thesis table 6.2b"] * 6 + ["thesis table 7.10"] * 4


def test_backbones_with_and_without_a_pyramid_are_not_mixed():
    tasks = SURVEY["pascal"]
    for arch in ("resnet18", "resnet50"):
        plain = {row.source for row in published_rows("pascal", 5105, arch, tasks)}
        pyramid = {row.source for row in published_rows("pascal", 5105, arch, tasks, multi_scale=True)}
        assert pyramid <= {"thesis table 5.4", "thesis table 5.6b"}
        assert not plain & pyramid
        assert pyramid


def test_change_only_beside_the_tasks_it_is_the_mean_of():
    def deltas(tasks):
        return {
            name
            for name, values in rows("thesis table 5.1b", "pascal", HRNET18, tasks, multi_scale=True).items()
            if "delta" in values
        }

    small, everything = ("segmentation", "parts", "saliency"), tuple(SURVEY["pascal"])
    assert deltas(everything) == {"MTL", "MTI-Net"}
    assert deltas(small) == {"MTL (s)", "MTI-Net (s)", "MTI-Net (s)(E)", "MTI-Net (s)(N)", "MTI-Net (s)(E+N)"}
    assert deltas(small[:2]) == set()
    # A row without scores has its mean change only.
    mean = rows("thesis table 5.6b", "pascal", "resnet50", everything, multi_scale=True)
    assert mean == {"MTL, FPN": {"delta": -0.0455}}
    assert not rows("thesis table 5.6b", "pascal", "resnet50", small, multi_scale=True)


def test_further_columns():
    tasks = ("segmentation", "depth")
    ours = rows("thesis table 5.5", "nyud", "hrnet_w48", tasks, multi_scale=True)["MTI-Net"]
    assert ours["segmentation_pixel_accuracy"] == 0.753
    assert (ours["depth_abs_rel"], ours["depth_delta1"], ours["depth_delta3"]) == (0.138, 0.830, 0.993)
    front = rows("thesis table 5.3", "nyud", HRNET18, tasks, multi_scale=True)["MTI-Net, final output"]
    assert (front["front_end_32_segmentation_miou"], front["front_end_4_depth_rmse"]) == (0.3202, 0.633)
    # With another depth protocol there is no saying which of them agree.
    other = {name: RCM["nyud"][name] for name in tasks}
    found = published_rows("nyud", 654, "hrnet_w48", other, multi_scale=True)
    assert [set(row.values) for row in found] == [{"segmentation_miou"}] * 2
