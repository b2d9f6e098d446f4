"""``polyscene analyse resources``: what it counts, measures and refuses."""

import json

import pytest

from polyscene.launch import analyse_resources
from polyscene.launch.analyse import analyse
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import read_results

BASE = """
arch: resnet10t
tasks: [segmentation, depth]
epochs: 1
data: {kind: nyud}
augmentation: {recipe: mti_net_nyud, size: [64, 64]}
model: {head: aspp, head_width: 8, pyramid_width: 16}
"""


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """``configs(kind, more)``: path of a config of small networks; it has no data, no weights and no out."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "base.yaml").write_text(BASE)

    def make(kind, more="", name=None):
        path = folder / f"{name or kind}.yaml"
        path.write_text(f"extends: base\n{more}\nmodel: {{kind: {kind}}}\n")
        return str(path)

    return make


@pytest.fixture
def no_passes(monkeypatch):
    """Nothing is run: memory and times are made up, 1 ms for the first network, 2 ms for the second, ..."""

    def latencies(models, setting, repeats, progress):
        return {name: [0.001 * number] * repeats for number, name in enumerate(models, start=1)}

    monkeypatch.setattr(analyse_resources, "latencies", latencies)
    monkeypatch.setattr(analyse_resources, "peak_memory", lambda *_: analyse_resources.PeakMemory(2**20, 3 * 2**20))


def details(out):
    return json.loads((out / "results.json").read_text())["protocol"]["resources"]


def test_a_network_is_really_run(configs, polyscene, tmp_path):
    out = tmp_path / "out"
    words = (configs("multi_task"), f"out={out}", "size=[64, 96]", "repeats=3", "device=cpu")
    code, shown, _ = polyscene("analyse", "resources", *words)
    assert code == 0
    assert "multi_task" in shown
    row = details(out)["multi_task"]
    assert len(row["passes_ms"]) == 3
    first, third = row["latency_quartiles_ms"]
    assert 0 < first <= row["latency_ms"] <= third
    assert row["weights_bytes"] >= 4 * row["parameters"]
    assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > row["weights_bytes"]
    assert row["relative"] == dict.fromkeys(row["relative"], 0)
    found = read_results(out / "results.json")
    assert found.subject == "multi_task"
    assert found.values["latency"] == row["latency_ms"]


def test_a_single_task_set_counts_all_its_networks(configs, no_passes, tmp_path):
    out = tmp_path / "out"
    words = [configs("single"), configs("multi_task"), f"out={out}", "size=[64, 96]", "device=cpu"]
    assert analyse("resources", words) == 0
    rows = details(out)
    single, shared = rows["single"], rows["multi_task"]
    assert single["shared_parameters"] == 0
    assert single["parameters"] == 2 * shared["shared_parameters"] + sum(shared["task_parameters"].values())
    assert shared["relative"]["parameters"] == pytest.approx(shared["parameters"] / single["parameters"] - 1)
    assert -0.5 < shared["relative"]["macs"] < -0.4
    assert single["flops_per_image"] == 2 * single["macs_per_image"]
    found = read_results(out / "results.json")
    assert found.values["macs"] == pytest.approx(single["macs_per_image"] / 1e9)
    assert found.per_class["macs"]["weights"]["multi_task"] == pytest.approx(shared["macs_per_image"] / 1e9)


def test_all_kinds_can_be_compared_with_a_reference(configs, no_passes, tmp_path, capsys):
    out = tmp_path / "out"
    named = [
        configs("mti_net", "auxiliary_tasks: [normals, edges]"),
        configs("pad_net"),
        configs("multi_task"),
        f"reference={configs('single')}",
    ]
    assert analyse("resources", [*named, "model.head=null", "model.pad_net.width=16", f"out={out}", "device=cpu"]) == 0
    rows = details(out)
    assert list(rows) == ["single", "mti_net", "pad_net", "multi_task"]
    assert rows["mti_net"]["auxiliary"] == {"normals": 3, "edges": 1}
    assert rows["pad_net"]["channels"] == {"segmentation": 40, "depth": 1}
    assert rows["multi_task"]["relative"]["latency"] == pytest.approx(3)
    assert rows["mti_net"]["relative"]["memory"] == 0
    shown = capsys.readouterr().out
    assert "+300.0%" in shown
    assert "4.0 (4.0-4.0)" in shown


def test_adapters_and_rcm_need_no_response_moments(configs, no_passes, tmp_path):
    out = tmp_path / "out"
    kinds = ["frozen", "task_norms", "parallel_adapters", "rcm"]
    named = [configs(kind) for kind in kinds]
    assert analyse("resources", [*named, "model.rcm.rank=0.5", f"out={out}", "device=cpu", "size=[64, 64]"]) == 0
    rows = details(out)
    assert [row["kind"] for row in rows.values()] == kinds
    parameters = [row["parameters"] for row in rows.values()]
    assert parameters[0] < parameters[1] < parameters[2]
    assert parameters[3] < parameters[0]  # half of the directions of every bank


def test_counting_runs_nothing(configs, monkeypatch, tmp_path, capsys):
    def fail(*_, **__):
        raise AssertionError("a network was run")

    monkeypatch.setattr(analyse_resources, "latencies", fail)
    monkeypatch.setattr(analyse_resources, "peak_memory", fail)
    out = tmp_path / "out"
    assert analyse("resources", [configs("single"), configs("multi_task"), f"out={out}", "repeats=0"]) == 0
    found = read_results(out / "results.json")
    assert [metric.key for metric in found.metrics] == ["parameters", "macs", "flops"]
    assert set(details(out)["multi_task"]["relative"]) == {"parameters", "macs", "flops"}
    assert "latency" not in capsys.readouterr().out


def test_without_out_nothing_is_written(configs, no_passes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert analyse("resources", [configs("single"), "device=cpu", "size=[64, 64]"]) == 0
    shown = capsys.readouterr().out
    assert "single" in shown
    assert "MACs" in shown
    assert list(tmp_path.iterdir()) == []


def test_tasks_and_backbone_can_be_given_to_all(configs, no_passes, tmp_path, capsys):
    out = tmp_path / "out"
    auxiliary = configs("mti_net", "auxiliary_tasks: [normals, edges]", "helped")
    words = [configs("single"), auxiliary, "model.head=null", "device=cpu", "size=[64, 64]"]
    assert analyse("resources", [*words, "tasks=[depth, normals]", "arch=resnet14t", f"out={out}"]) == 0
    rows = details(out)
    assert {name: row["channels"] for name, row in rows.items()} == {
        name: {"depth": 1, "normals": 3} for name in ("single", "helped")
    }
    assert rows["helped"]["auxiliary"] == {"edges": 1}
    assert {row["arch"] for row in rows.values()} == {"resnet14t"}
    assert "warning" not in capsys.readouterr().err
    other = configs("multi_task", "tasks: [edges]", "edges")
    assert analyse("resources", [configs("single"), other, "device=cpu", "size=[64, 64]"]) == 0
    assert "warning: 'edges' has the tasks edges, and 'single' segmentation, depth" in capsys.readouterr().err


def test_another_device_or_number_of_passes_is_another_result(configs, no_passes, tmp_path):
    words = [configs("single"), f"out={tmp_path / 'out'}", "size=[64, 64]"]
    assert analyse("resources", [*words, "device=cpu"]) == 0
    assert analyse("resources", [*words, "device=cpu"]) == 0
    with pytest.raises(UserError, match=r"another config \(device: cpu -> auto; repeats: 10 -> 3\)"):
        analyse("resources", [*words, "repeats=3"])


def test_a_finished_run_and_a_model_that_got_a_task(dense_run, dense_words, no_passes, tmp_path):
    out = tmp_path / "out"
    config = dense_words("unused")[1]
    more = tmp_path / "more.yaml"
    more.write_text(f"extends: {config}\ntasks: [saliency]\nmodel: {{base: {dense_run}}}\n")
    assert analyse("resources", [str(dense_run), str(more), f"out={out}", "device=cpu", "size=[64, 64]"]) == 0
    rows = details(out)
    assert rows[dense_run.name]["channels"] == {"segmentation": 3, "depth": 1}
    assert rows["more"]["channels"] == {"segmentation": 3, "depth": 1, "saliency": 1}
    assert rows["more"]["task_parameters"]["depth"] == rows[dense_run.name]["task_parameters"]["depth"]


def test_names_tell_configs_apart(configs, no_passes, tmp_path, capsys):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net.yaml").write_text(f"extends: {configs('single')}\n")
    named = [str(tmp_path / "a" / "net.yaml"), str(tmp_path / "b" / "net.yaml")]
    assert analyse("resources", [*named, "device=cpu", "size=[64, 64]"]) == 0
    shown = capsys.readouterr().out
    assert "a/net" in shown
    assert "b/net" in shown


@pytest.mark.parametrize(
    ("more", "words", "message"),
    [
        ("", ["size=[32, 64]"], "size=.* at least 64"),
        ("", ["repeats=-1"], "repeats=-1"),
        ("", ["batch=0"], "batch=0"),
        ("", ["tasks=[saliency]"], "nyud has no task 'saliency'"),
        ("", ["tasks=[depth, depth]"], "'depth' is named twice"),
        ("", ["arch=resnet999"], "resnet999"),
        ("", ["model.hed_width=3"], "model.hed_width"),
        ("", ["reference=nowhere"], "nowhere"),
        ("arch: null", [], "names no weights.* add arch="),
        ("arch: null\nweights: runs/none", [], "weights=runs/none, which do not exist"),
        ("model: {kind: rcm, base: runs/none}", [], "runs/none"),
        ("data: {kind: folder, root: nowhere}", [], r"how many classes 'segmentation' has .*classes\.txt"),
        ("data: {kind: folder, root: nowhere}", ["tasks=[floors]"], "a folder of images has no task 'floors'"),
        ("auxiliary_tasks: [edges]", [], "need a front end"),
    ],
)
def test_refusals_come_before_any_work(configs, tmp_path, more, words, message):
    config = tmp_path / "config.yaml"
    config.write_text(f"extends: {configs('multi_task')}\n{more}\n")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        analyse("resources", [str(config), f"out={out}", "device=cpu", *words])
    assert not out.exists()


def test_one_network_is_named_once(configs):
    with pytest.raises(UserError, match="named twice"):
        analyse("resources", [configs("single"), configs("single")])
    with pytest.raises(UserError, match="no config is named"):
        analyse("resources", ["size=[64, 64]"])
