"""Side by side: rows, best marks, differences, and protocols that must not be mixed silently."""

import pytest

from polyscene.downstream.report.comparison import group_evaluations, show_difference
from polyscene.downstream.report.overview import overview_row
from polyscene.downstream.report.per_class import class_tables
from polyscene.downstream.report.protocols import decisive, incidental
from polyscene.downstream.report.runs import find_runs
from polyscene.runtime.results import Metric, Published

MIOU = Metric("miou_all", "mIoU, 3 classes")


def groups(*folders):
    return group_evaluations(find_runs(folders))


def kinds(block):
    return [row.kind for row in block.rows]


def test_one_table_with_measured_random_chance_and_published_rows(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", miou=0.418)
    evaluation_run(tmp_path / "b", miou=0.3)
    (group,) = groups(tmp_path)
    (block,) = group.blocks
    # The random baseline and chance are the same for both and shown once.
    assert kinds(block) == ["measured", "measured", "random", "chance", "published"]
    assert block.heading == ""
    assert [[cell.text for cell in row.cells] for row in block.rows] == [
        ["41.8%", "0.500 m"],
        ["30.0%", "0.500 m"],
        ["11.0%", "1.250 m"],
        ["5.0%", "–"],
        ["28.1%", "–"],
    ]
    assert [row.difference for row in block.rows[:2]] == ["+30.8 points", "+19.0 points"]
    assert (block.rows[4].name, block.rows[4].note) == ("MoCo", "thesis table 7.6")
    assert (group.differing, group.minor) == ([], [])


def test_means_over_seeds_show_their_deviation(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", miou=0.418, deviation={"miou_all": 0.0061, "rmse": 0.02})
    evaluation_run(tmp_path / "b", miou=0.3)
    (group,) = groups(tmp_path)
    rows = [[cell.text for cell in row.cells] for row in group.blocks[0].rows]
    assert rows[:3] == [["41.8 ± 0.6%", "0.500 ± 0.020 m"], ["30.0%", "0.500 m"], ["11.0%", "1.250 m"]]
    assert group.blocks[0].rows[0].cells[0].value == 0.418  # still what is compared
    assert overview_row(group.runs[0]).value == "41.8 ± 0.6%"


def test_best_is_the_highest_or_lowest_of_what_was_measured(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", miou=0.05, published=[Published("MoCo", "paper", {"miou_all": 0.9})])
    (group,) = groups(tmp_path)
    rows = {row.kind: row for row in group.blocks[0].rows}
    # Random weights may win, and the page says so; published numbers are not in the race.
    assert [cell.best for cell in rows["random"].cells] == [True, False]
    assert [cell.best for cell in rows["measured"].cells] == [False, True]  # rmse: lower is better
    assert not any(cell.best for cell in rows["published"].cells)
    assert rows["measured"].better is False


def test_a_single_number_is_not_the_best_of_anything(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", baseline={})
    (group,) = groups(tmp_path)
    assert not any(cell.best for row in group.blocks[0].rows for cell in row.cells)


def test_other_protocol_values_are_named_and_kept_apart(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", miou=0.3)
    evaluation_run(tmp_path / "b", miou=0.4, protocol={"clusters": 5})
    evaluation_run(tmp_path / "c", miou=0.5)
    (group,) = groups(tmp_path)
    assert group.differing == [("clusters", ["15", "5"])]
    assert [block.heading for block in group.blocks] == ["clusters = 15", "clusters = 5"]
    assert [[run.name for run in block.runs] for block in group.blocks] == [["a", "c"], ["b"]]
    best = [[row.note for row in block.rows if row.cells[0].best] for block in group.blocks]
    assert best == [["c"], ["b"]]  # each part has its own


def test_subject_machine_and_findings_do_not_set_runs_apart_but_seed_and_paths_are_told(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a")
    other = {
        "arch": "resnet50",
        "device": "cuda",
        "workers": 9,
        "bank_regions": {"weights": 7, "random": 8},
        "seed": 1,
        "data": {"images": "/elsewhere/photos"},
    }
    evaluation_run(tmp_path / "b", protocol=other)
    (group,) = groups(tmp_path)
    assert len(group.blocks) == 1
    assert group.minor == [("seed", ["0", "1"]), ("data.images", ["/data/photos", "/elsewhere/photos"])]


def test_a_path_against_none_is_a_difference(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", protocol={"head": None})
    evaluation_run(tmp_path / "b", protocol={"head": "/runs/head"})
    (group,) = groups(tmp_path)
    assert group.differing == [("head", ["null", "(a path)"])]
    assert group.minor == []


def test_commands_and_protocol_names_are_groups_of_their_own(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a")
    evaluation_run(tmp_path / "b", protocol={"protocol": "saliency"})
    evaluation_run(tmp_path / "c", command="probe")
    assert [(g.command, g.protocol) for g in groups(tmp_path)] == [
        ("retrieve", "kmeans"),
        ("retrieve", "saliency"),
        ("probe", "kmeans"),
    ]


def test_the_same_key_under_another_label_is_another_column(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a")
    eleven = Metric("miou_all", "mIoU, 11 classes")
    fields = {"metrics": [eleven], "values": {"miou_all": 0.2}, "published": [], "protocol": {"classes": 11}}
    evaluation_run(tmp_path / "b", **fields)
    (group,) = groups(tmp_path)
    assert [metric.label for metric in group.metrics] == ["mIoU, 3 classes", "RMSE", "mIoU, 11 classes"]
    assert [[cell.text for cell in row.cells] for row in group.blocks[1].rows] == [
        ["–", "–", "20.0%"],
        ["–", "–", "11.0%"],
        ["–", "–", "5.0%"],
    ]


def test_baselines_of_two_architectures_are_two_rows(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a")
    fields = {"protocol": {"arch": "resnet50"}, "baseline": {"random": {"miou_all": 0.2, "rmse": 1.0}}}
    evaluation_run(tmp_path / "b", **fields)
    (group,) = groups(tmp_path)
    rows = [(row.name, row.note) for row in group.blocks[0].rows if row.kind == "random"]
    assert rows == [("resnet18, random initialisation", "beside a"), ("resnet50, random initialisation", "beside b")]


def test_bars_are_shares_of_the_largest_number_and_absent_below_zero(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a", miou=0.44)
    (group,) = groups(tmp_path)
    assert [row.cells[0].share for row in group.blocks[0].rows[:2]] == [1.0, pytest.approx(0.25)]
    evaluation_run(tmp_path / "negative" / "a", miou=-0.1)
    (group,) = groups(tmp_path / "negative")
    assert {row.cells[0].share for row in group.blocks[0].rows} == {None}


@pytest.mark.parametrize(
    ("metric", "value", "base", "expected"),
    [
        (MIOU, 0.418, 0.11, ("+30.8 points", True)),
        (MIOU, 0.1, 0.11, ("−1.0 points", False)),
        (MIOU, 0.1, 0.1, ("+0.0 points", None)),
        (Metric("rmse", "RMSE", "m", "lower"), 0.5, 1.25, ("−0.750 m", True)),
        (MIOU, 0.1, None, ("", None)),
    ],
)
def test_differences_in_words(metric, value, base, expected):
    assert show_difference(metric, value, base) == expected


def test_protocol_values_are_sorted_into_decisive_and_incidental():
    protocol = {"weights": "a", "k": 20, "data": {"root": "/d", "kind": "voc"}, "precision": "bf16", "text": "a / b"}
    assert decisive(protocol) == {"k": "20", "data.root": "(a path)", "data.kind": "voc", "text": "a / b"}
    assert incidental(protocol) == {"data.root": "/d", "precision": "bf16"}


def test_numbers_per_class(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a")
    (group,) = groups(tmp_path)
    (table,) = class_tables(group, {"a": "runs/a"})
    assert table.title == "mIoU, 3 classes per class"
    assert table.columns == [("runs/a", "a"), ("random", "a")]
    assert table.rows == [("bus", ["50.0%", "10.0%", "+40.0"]), ("cat", ["–", "12.0%", "–"])]
    evaluation_run(tmp_path / "b")
    (group,) = groups(tmp_path)
    (table,) = class_tables(group, {"a": "x", "b": "y"})
    assert table.columns == [("x", "a"), ("random", ""), ("y", "b")]  # one random column for both
    assert not table.has_difference
