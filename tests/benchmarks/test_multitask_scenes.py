"""The multi-task benchmark script: what it plans, what it writes."""

import json
from pathlib import Path

import pytest
import yaml

from polyscene.launch.multitask_checks import check_values
from polyscene.launch.multitask_config import MultitaskConfig
from polyscene.runtime.config import load_config


@pytest.fixture(scope="module")
def scenes_script(load_script):
    return load_script("multitask_scenes")


@pytest.fixture
def sweep(scenes_script, tmp_path):
    options = ["encoder", "--scenes", str(tmp_path / "scenes"), "--out", str(tmp_path / "sweep"), "--seeds", "0", "1"]
    return scenes_script.Sweep(scenes_script.parse([*options, "--json", str(tmp_path / "results" / "r.json")]))


def finish(sweep, init, kind, seed, segmentation, depth, normals=30.0, edges=0.6, delta=None):
    folder = sweep.folder(init, kind, seed)
    folder.mkdir(parents=True)
    results = {"segmentation_miou": segmentation, "depth_rmse": depth, "normals_mean": normals, "edges_odsf": edges}
    results |= {} if delta is None else {"delta": delta}
    (folder / "results.json").write_text(json.dumps({**results, "protocol": {"resources": {"trained": 7_160_000}}}))


@pytest.mark.parametrize("study", ["encoder", "interaction", "balancing"])
def test_all_runs_have_valid_configs_of_equal_length(scenes_script, tmp_path, study):
    sweep = scenes_script.Sweep(scenes_script.parse([study, "--out", str(tmp_path)]))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(sweep.config()))
    seen, models = set(), set()
    for init in sweep.inits:
        for model in sweep.study.models:
            config = load_config(MultitaskConfig, str(path), sweep.words(init, model, 1))
            check_values(config)
            assert config.seed == 1
            assert config.tasks == sweep.study.tasks
            assert config.evaluate.single == (None if model == "single" else str(sweep.folder(init, "single", 1)))
            assert config.weights == ("random" if init == "random" else "runs/demo/pretrain")
            models.add(str((config.model, config.balancing, config.auxiliary_tasks, config.task_weights)))
            seen.add((config.iterations, config.batch_size, config.augmentation.size, config.optim.lr))
    assert len(seen) == 1
    assert len(models) == len(sweep.study.models)


def test_steps_and_rate_are_those_asked_for(scenes_script, tmp_path):
    options = ["interaction", "--iterations", "600", "--lr", "0.002", "--seeds", "0"]
    sweep = scenes_script.Sweep(scenes_script.parse([*options, "--out", str(tmp_path), "--json", str(tmp_path / "j")]))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(sweep.config()))
    config = load_config(MultitaskConfig, str(path), sweep.words("SSL", "mti_net", 0))
    assert (config.iterations, config.optim.lr) == (600, 0.002)
    finish(sweep, "SSL", "mti_net", 0, 0.2, 1.0)
    sweep.report()
    record = json.loads((tmp_path / "j").read_text())
    assert (record["iterations"], record["learning_rate"]) == (600, 0.002)


def test_another_initialisation_can_be_added(scenes_script, tmp_path):
    sweep = scenes_script.Sweep(scenes_script.parse(["encoder", "--init", "supervised=a=b.pt", "--pretrained", "mine"]))
    assert sweep.inits == {"random": "random", "SSL": "mine", "supervised": "a=b.pt"}
    assert "weights=a=b.pt" in sweep.words("supervised", "rcm", 0)


def test_single_task_models_come_first_and_finished_runs_are_not_repeated(sweep, monkeypatch):
    called = []
    monkeypatch.setattr(sweep, "prepare", lambda: None)
    monkeypatch.setattr(sweep, "polyscene", lambda *words: called.append(words))
    finish(sweep, "SSL", "rcm", 0, 0.2, 1.0)
    sweep.run()
    # Before a run that is compared, the run that it is compared with.
    outs = [next(w.partition("=")[2] for w in words if w.startswith("out=")) for words in called]
    for number, words in enumerate(called):
        single = next((w.partition("=")[2] for w in words if w.startswith("evaluate.single=")), None)
        assert single is None or single in outs[:number]
    assert len(called) == 2 * 4 * 2 - 1


def test_scenes_and_backbone_are_made_only_where_they_do_not_exist(scenes_script, tmp_path, monkeypatch):
    root, backbone = tmp_path / "scenes", tmp_path / "pretrain"
    words = ["encoder", "--scenes", str(root), "--pretrained", str(backbone), "--out", str(tmp_path / "sweep")]
    sweep, called = scenes_script.Sweep(scenes_script.parse(words)), []
    monkeypatch.setattr(sweep, "polyscene", lambda *words: called.append(words[0]))
    sweep.prepare()
    assert called == ["scenes", "pretrain"]
    (root / "NYUD_MT").mkdir(parents=True)
    backbone.mkdir()
    (backbone / "backbone.safetensors").touch()
    sweep.prepare()
    assert called == ["scenes", "pretrain"]


def test_the_table_has_means_deviations_and_verdicts(sweep):
    for seed, shift in enumerate((0.0, 0.02)):
        finish(sweep, "SSL", "single", seed, 0.20 + shift, 1.0)
        finish(sweep, "SSL", "frozen", seed, 0.10 + shift, 1.5, normals=40.0, edges=0.5, delta=-0.3 - shift)
        finish(sweep, "SSL", "rcm", seed, 0.15 + shift, 1.2, normals=35.0, edges=0.55, delta=-0.1 + shift)
    finish(sweep, "random", "frozen", 0, 0.1, 1.5)
    finish(sweep, "random", "rcm", 0, 0.2, 1.6)
    text = sweep.report()
    assert "| SSL | single-task | 7.2 M | 2 | 21.00 ± 1.41 | 1.000 ± 0.000 | 30.00 ± 0.00 | 60.00 ± 0.00 | 0 |" in text
    assert (
        "| SSL | RCM | 7.2 M | 2 | 16.00 ± 1.41 | 1.200 ± 0.000 | 35.00 ± 0.00 | 55.00 ± 0.00 | -9.00 ± 1.41 |" in text
    )
    assert "| random | RCM | 7.2 M | 1 | 20.00 | 1.600 | 30.00 | 60.00 | - |" in text
    assert "- SSL: RCM beats the frozen encoder on every task: yes, in every one of 2 seeds" in text
    # Lower is better for depth; equal is not better.
    assert "segmentation 1 of 1, depth 0 of 1, normals 0 of 1, edges 0 of 1" in text
    saved = json.loads(Path(sweep.options.json).read_text())
    assert saved["results"]["SSL"]["rcm"]["delta"] == {"0": -0.1, "1": pytest.approx(-0.08)}
    assert saved["results"]["SSL"]["rcm"]["resources"] == {"trained": 7_160_000}
    assert saved["verdict"]["by_seed"]["SSL"] == dict.fromkeys(
        ("segmentation", "depth", "normals", "edges"), [True] * 2
    )


def test_the_table_replaces_what_is_between_the_marks(scenes_script, tmp_path):
    page = tmp_path / "results.md"
    marks = scenes_script.STUDIES["balancing"].marks
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    scenes_script.insert(page, "new", *marks)
    assert page.read_text() == f"before\n{marks[0]}\nnew\n{marks[1]}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="has no lines"):
        scenes_script.insert(page, "new", *marks)
