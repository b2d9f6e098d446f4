"""Run directories are found, named and read, however damaged."""

import json

import pytest

from polyscene.downstream.report.runs import EvaluationRun, PretrainRun, find_runs
from polyscene.runtime.errors import UserError


def by_name(*places):
    return {run.name: run for run in find_runs(places)}


def test_runs_below_a_directory_are_found_once_also_inside_runs(tmp_path, pretrain_run, evaluation_run):
    pretrain_run(tmp_path / "demo" / "pretrain")
    evaluation_run(tmp_path / "demo" / "pretrain" / "knn")
    evaluation_run(tmp_path / "demo" / "deep" / "er" / "retrieve")
    (tmp_path / "demo" / "pictures").mkdir()
    (tmp_path / "demo" / "loop").symlink_to(tmp_path / "demo")
    found = by_name(tmp_path / "demo", tmp_path / "demo" / "pretrain")
    assert {name: type(run) for name, run in found.items()} == {
        "pretrain": PretrainRun,
        "pretrain/knn": EvaluationRun,
        "deep/er/retrieve": EvaluationRun,
    }


def test_a_run_alone_has_its_folders_name(tmp_path, pretrain_run):
    pretrain_run(tmp_path / "coco")
    assert list(by_name(tmp_path / "coco")) == ["coco"]


def test_search_ends_at_a_depth(tmp_path, evaluation_run):
    evaluation_run(tmp_path / "a" / "b" / "c" / "d" / "e")
    with pytest.raises(UserError, match="holds none within 4 levels"):
        find_runs([tmp_path])
    assert len(find_runs([tmp_path / "a"])) == 1


def test_what_a_pretraining_tells(tmp_path, pretrain_run):
    (run,) = find_runs([pretrain_run(tmp_path / "a")])
    assert run.state == "finished"
    assert (run.started, run.ended) == ("2026-01-02 10:00:00", "2026-01-02 10:05:30")
    assert run.warnings == ("model.queue is large",)
    assert run.versions["commit"] == "abc1234"
    assert run.weights["dataset"] == "folder:480"
    assert run.curves.last("knn_accuracy") == 0.4
    assert [picture.file for picture in run.pictures] == ["pictures/views.png"]
    assert not run.problems


def test_unfinished_pretrainings(tmp_path, pretrain_run):
    (run,) = find_runs([pretrain_run(tmp_path / "stopped", steps=120, finished=False)])
    assert run.state == "unfinished"
    going_on = pretrain_run(tmp_path / "on", steps=400)
    with open(going_on / "metrics.jsonl", "a") as file:
        file.write('{"step": 410, "loss": 1}\n')
    assert by_name(going_on)["on"].state == "unfinished"
    just_started = pretrain_run(tmp_path / "new", finished=False)
    (just_started / "metrics.jsonl").unlink()
    assert by_name(just_started)["new"].curves.series == {}


def test_damage_is_named_and_the_rest_is_read(tmp_path, pretrain_run, evaluation_run):
    pretraining = pretrain_run(tmp_path / "pretrain")
    (pretraining / "backbone.safetensors").write_bytes(b"half")
    with open(pretraining / "metrics.jsonl", "a") as file:
        file.write('{"step": 41')
    evaluation = evaluation_run(tmp_path / "evaluation")
    (evaluation / "results.json").write_text('{"command": "ret')
    unfinished = evaluation_run(tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    found = by_name(tmp_path)
    assert found["pretrain"].state == "unfinished"
    assert found["pretrain"].curves.last_step == 400
    assert found["pretrain"].problems == [
        "backbone.safetensors is damaged",
        "1 line of metrics.jsonl could not be read and was skipped",
    ]
    assert found["evaluation"].state == "damaged"
    assert "results.json is damaged" in found["evaluation"].problems[0]
    assert (found["unfinished"].state, found["unfinished"].evaluation) == ("unfinished", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("baseline", {"random": 3}),
        ("baseline", []),
        ("chance", {"miou_all": "high"}),
        ("per_class", {"miou_all": {"weights": [1, 2]}}),
        ("per_class", 7),
        ("protocol", "kmeans"),
        ("subject", None),
        ("miou_all", float("nan")),
        ("published", [{"name": "a", "source": "b", "values": {"miou_all": "x"}}]),
        ("pictures", [{"file": 1, "caption": "c"}]),
    ],
)
def test_results_of_another_shape_are_damaged_not_a_crash(tmp_path, evaluation_run, key, value):
    folder = evaluation_run(tmp_path / "a")
    document = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**document, key: value}))
    (run,) = find_runs([folder])
    assert (run.state, run.evaluation) == ("damaged", None)


def test_what_is_no_run_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("colour: red\n")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "results.json").write_text('{"accuracy": 1}')
    (tmp_path / "file.txt").write_text("hello")
    for name, words in [
        ("empty", "not a run directory"),
        ("other", "not a run directory"),
        ("strange", "not a run directory"),
        ("absent", "does not exist"),
        ("file.txt", "is a file"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            find_runs([tmp_path / name])
        assert name in str(error.value)
        assert "\n" not in str(error.value)
