"""The ablation script: what it plans, what it writes."""

import json

import pytest

from polyscene.launch.pretrain_config import PretrainConfig, check_values
from polyscene.runtime.config import load_config


@pytest.fixture(scope="module")
def ablation(load_script):
    return load_script("ablation")


@pytest.fixture
def sweep(ablation, tmp_path):
    return ablation.Sweep(
        ablation.parse(["--photos", str(tmp_path), "--transfer", str(tmp_path), "--out", str(tmp_path / "sweep")])
    )


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_every_arm_adds_one_ingredient(ablation, preset, tmp_path):
    """Consecutive arms differ in that ingredient's keys and in no other."""
    configs = []
    for arm in ablation.ARMS:
        words = [f"data.root={tmp_path}", *ablation.arm_words(arm, ablation.PRESETS[preset])]
        config = load_config(PretrainConfig, f"pretrain/{arm.recipe}", [*words, "out=x"])
        check_values(config)
        configs.append(config)
    assert configs[0].views.small.count == 0
    assert configs[1].views.small.count > 0
    assert [c.views.constraint for c in configs] == ["none", "none", *["overlap"] * 4]
    assert len({c.model.momentum for c in configs[:3]}) == 1
    assert configs[3].model.momentum < configs[2].model.momentum
    assert [c.views.augmentation for c in configs] == [*["standard"] * 4, "mix", "mix"]
    assert [c.neighbours.weight for c in configs] == [0] * 5 + [0.4]
    for key in ("optim", "batch_size", "precision", "seed"):
        assert len({repr(getattr(c, key)) for c in configs}) == 1


def test_equal_time_trains_again_only_what_differs(sweep, ablation):
    seconds = {arm.name: 10.0 for arm in ablation.ARMS}
    seconds["MoCo"] = 4.0
    plan = sweep.plan(seconds)
    assert plan[:6] == [(arm, 4) for arm in ablation.ARMS]
    assert plan[6:] == [(ablation.ARMS[0], 10)]


def test_the_table_holds_means_deviations_and_paired_gains(ablation):
    n = len(ablation.MEASUREMENTS)
    rows = {
        "random": [{0: 0.10, 1: 0.12}] * n,
        "MoCo": [{0: 0.20, 1: 0.24}] * n,
        "+ A+": [{1: 0.23}] * n,  # stopped before seed 0: compared with MoCo's seed 1 only
        "+ kNN": [{0: 0.23, 1: 0.29}] * n,
        "never run": [{}] * n,
    }
    lines = ablation.markdown_table(rows, {"MoCo": 4, "+ kNN": 2}, {"MoCo": 40.0, "+ kNN": 41.0})
    assert lines[2].startswith("| random | - | - | 2 | 11.0 ± 1.4 |")
    assert lines[3].startswith("| MoCo | 4 | 40 s | 2 | 22.0 ± 2.8 |")
    assert lines[4].startswith("| + A+ | - | - | 1 | 23.0 (-1.0) |")
    assert lines[5].startswith("| + kNN | 2 | 41 s | 2 | 26.0 ± 4.2 (+4.0) |")
    assert lines[6].startswith("| never run | - | - | 0 | - |")


def test_a_report_holds_what_is_measured_so_far(ablation, sweep, tmp_path):
    moco, last = ablation.ARMS[0], ablation.ARMS[-1]
    for arm, seeds in ((moco, (0, 1)), (last, (1,))):
        for seed in seeds:
            for m in ablation.MEASUREMENTS:
                folder = sweep.folder(arm, 4, seed) / m.key
                folder.mkdir(parents=True)
                document = {m.metric: 0.2 + 0.1 * seed, "baseline": {"random": {m.metric: 0.1}}}
                (folder / "results.json").write_text(json.dumps(document))
    text = sweep.report({arm.name: 10.0 for arm in ablation.ARMS})
    equal = text.split("**Equal time**")[0]
    assert "| MoCo | 4 | 40 s | 2 | 25.0 ± 7.1 |" in equal
    assert "| + kNN | 4 | 40 s | 1 | 30.0 (+0.0) |" in equal
    assert "| random | - | - | 2 | 10.0 ± 0.0 |" in equal
    assert json.loads((tmp_path / "sweep" / "ablation.json").read_text())["seeds"] == [0, 1, 2]


def test_only_the_marked_part_of_a_document_changes(ablation, tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"before\n{ablation.BEGIN}\nold\n{ablation.END}\nafter\n")
    ablation.insert(path, "new\n")
    ablation.insert(path, "newer\n")
    assert path.read_text() == f"before\n{ablation.BEGIN}\nnewer\n{ablation.END}\nafter\n"
    path.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        ablation.insert(path, "new")
