"""results.json: written, read back, shown, refused."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from polyscene.runtime.errors import UserError
from polyscene.runtime.results import (
    Evaluation,
    Metric,
    Picture,
    Published,
    per_class_table,
    read_results,
    results_table,
    write_results,
)

MIOU = Metric("miou", "mIoU")
ERROR = Metric("rmse", "RMSE", unit="m", better="lower")


@pytest.fixture
def evaluation():
    return Evaluation(
        command="retrieve",
        title="Segment retrieval",
        subject="runs/a",
        metrics=[MIOU, ERROR],
        values={"miou": 0.418, "rmse": 0.5831},
        baseline={"random": {"miou": 0.11, "rmse": 1.2}},
        chance={"miou": 0.05},
        per_class={"miou": {"weights": {"bus": 0.5, "cat": 0.3}, "random": {"bus": 0.1, "cat": 0.12}}},
        published=[Published("MoCo", "thesis table 7.6", {"miou": 0.281})],
        pictures=[Picture("pictures/a.png", "retrieved regions")],
        protocol={"k": 15},
    )


def shown(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_what_was_written_is_read_back(tmp_path, evaluation):
    path = write_results(tmp_path, evaluation)
    assert read_results(path) == evaluation
    document = json.loads(path.read_text())
    assert document["miou"] == 0.418  # metric values lie at the top level
    assert document["baseline"]["random"]["rmse"] == 1.2
    assert "torch" in document["environment"]


def test_means_over_seeds_have_a_deviation(tmp_path, evaluation):
    several = replace(evaluation, deviation={"miou": 0.0042, "rmse": 0.0115})
    assert read_results(write_results(tmp_path, several)) == several
    rows = [line for line in shown(results_table(several)).splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[0].strip("│").split("│")] == ["runs/a", "41.8 ± 0.4%", "0.583 ± 0.011 m"]
    assert "±" not in "".join(rows[1:])  # nobody knows that of the others


def test_files_of_versions_without_deviation_are_read(tmp_path, evaluation):
    path = write_results(tmp_path, evaluation)
    document = json.loads(path.read_text())
    del document["deviation"]
    path.write_text(json.dumps(document))
    assert read_results(path) == evaluation


def test_the_table_has_a_row_a_backbone_and_units(evaluation):
    text = shown(results_table(evaluation))
    rows = [line for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["runs/a", "41.8%", "0.583 m"],
        ["random initialisation", "11.0%", "1.200 m"],
        ["chance", "5.0%", "-"],
        ["MoCo (thesis table 7.6)", "28.1%", "-"],
    ]


def test_the_per_class_table_puts_backbones_side_by_side(evaluation):
    rows = [line for line in shown(per_class_table(evaluation, "miou")).splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row.strip("│").split("│")] for row in rows] == [
        ["bus", "50.0%", "10.0%"],
        ["cat", "30.0%", "12.0%"],
    ]


@pytest.mark.parametrize("values", [{"miou": 0.1}, {"miou": 0.1, "rmse": 1.0, "extra": 2.0}])
def test_metrics_and_values_must_match(tmp_path, evaluation, values):
    broken = Evaluation(**{**vars(evaluation), "values": values})
    with pytest.raises(ValueError, match="do not match"):
        write_results(tmp_path, broken)
    assert not (tmp_path / "results.json").exists()


def test_numbers_that_json_does_not_know_are_refused(tmp_path, evaluation):
    broken = Evaluation(**{**vars(evaluation), "values": {"miou": float("nan"), "rmse": 1.0}})
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, broken)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": [{"key": "a"}]}', "not json"])
def test_another_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a results file"):
        read_results(path)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "results.json")
