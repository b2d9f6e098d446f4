"""The run directory's contract."""

import json

import pytest
import yaml

from polyscene.runtime.errors import UserError
from polyscene.runtime.run import RunDirectory, environment, open_run, read_run_config, run_hash

CONFIG = {"out": "x", "overwrite": False, "epochs": 3, "log": {"every": 5}, "optim": {"lr": 0.1}}


def test_config_is_written_with_versions_and_reads_back(tmp_path):
    path, continued = open_run(tmp_path / "a" / "b", CONFIG)
    assert not continued
    text = (path / "config.yaml").read_text()
    assert "# torch: " in text
    assert "# commit: " in text
    assert yaml.safe_load(text) == CONFIG == read_run_config(path)
    assert open_run(path, CONFIG) == (path, True)


def test_another_config_is_refused_naming_the_keys(tmp_path):
    open_run(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"another config \(epochs: 3 -> 4; optim.lr: 0.1 -> 0.2\)"):
        open_run(tmp_path, {**CONFIG, "epochs": 4, "optim": {"lr": 0.2}})
    assert open_run(tmp_path, {**CONFIG, "out": "./x", "log": {"every": 9}}, may_differ=("log",))[1]


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    open_run(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    open_run(tmp_path, {**CONFIG, "epochs": 9}, overwrite=True)
    assert read_run_config(tmp_path)["epochs"] == 9
    # This process holds the run until it ends.
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.yaml", "notes.txt"]


def test_results_without_config_are_not_adopted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no config.yaml"):
        open_run(tmp_path, CONFIG)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        open_run(tmp_path / "file", CONFIG)


def test_unwritable_folder():
    with pytest.raises(UserError, match="cannot write to '/proc/polyscene'.*choose another folder with out=DIR"):
        open_run("/proc/polyscene", CONFIG)


def test_metrics_are_rewound_to_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (10, 20, 30):
        run.metrics(step, {"loss": step / 10})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    run.rewind_metrics(20)
    run.metrics(30, {"loss": 7.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


def test_other_processes_write_nothing(tmp_path, capsys):
    run = RunDirectory(tmp_path, main=False, tensorboard=True)
    run.log("hello")
    run.metrics(1, {"loss": 1.0})
    run.rewind_metrics(0)
    run.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_tensorboard_receives_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path, tensorboard=True)
    run.metrics(1, {"loss": 2.5})
    run.metrics(2, {"loss": 1.5})
    run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(1, 2.5), (2, 1.5)]


def test_log_is_shown_and_kept(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    run.log("step [1/2] done")
    run.warn("careful")
    run.note("quiet")
    shown = capsys.readouterr().err
    assert "step [1/2] done" in shown
    assert "warning: careful" in shown
    assert "quiet" not in shown
    kept = (tmp_path / "log.txt").read_text()
    assert all(word in kept for word in ("step [1/2] done", "warning: careful", "quiet"))


def test_hash_ignores_what_does_not_matter():
    assert run_hash(CONFIG, ("log.every",)) == run_hash({**CONFIG, "log": {"every": 1}}, ("log.every",))
    assert run_hash(CONFIG, ("log",)) == run_hash({**CONFIG, "out": "y", "log": {"every": 1}}, ("log",))
    assert run_hash(CONFIG, ()) != run_hash({**CONFIG, "epochs": 4}, ())


def test_environment_names_versions():
    found = environment()
    assert found["polyscene"][0].isdigit()
    assert found["torch"][0].isdigit()
    assert found["commit"]
