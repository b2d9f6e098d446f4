"""``polyscene analyse``: what it finds, draws and refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from polyscene.launch.analyse import analyse
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import read_results


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def quick():
    """Words of an analysis of gradients that takes seconds."""
    return ["batches=3", "batch_size=2", "values=1000", "workers=0", "device=cpu"]


def test_gradients_of_own_parameters(dense_run, quick, tmp_path, capsys):
    out = tmp_path / "out"
    assert analyse("gradients", [str(dense_run), f"out={out}", *quick]) == 0
    found = read_results(out / "results.json")
    # Nothing of an RCM is trained by several tasks: similarities of each task's own gradients, and no cosine.
    assert [metric.key for metric in found.metrics] == [f"rsa_{d}" for d in ("stem", *(f"layer{i}" for i in "1234"))]
    assert all(-1 <= value <= 1 for value in found.values.values())
    assert found.per_class["rsa_layer4"]["weights"] == {"segmentation / depth": found.values["rsa_layer4"]}
    assert found.protocol["gradients_of"] == "own parameters of the encoder"
    assert [picture.file for picture in found.pictures] == ["pictures/gradients_rsa.png"]
    assert (out / "pictures" / "gradients_rsa.png").stat().st_size > 1000
    assert "segmentation / depth" in capsys.readouterr().out

    before = (out / "results.json").stat().st_mtime_ns
    assert analyse("gradients", [str(dense_run), f"out={out}", *quick]) == 0
    assert "is already finished" in capsys.readouterr().err
    assert (out / "results.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another config \(seed: 0 -> 1\)"):
        analyse("gradients", [str(dense_run), f"out={out}", *quick, "seed=1"])


def test_the_command_line(dense_run, polyscene, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = polyscene("analyse", "parameters", dense_run, f"out={out}", "tasks=1")
    assert code == 0
    assert "single-task" in shown
    code, _, err = polyscene("analyse", "gradients", tmp_path / "nothing")
    assert code == 2
    assert err.count("\n") == 1
    assert "error: " in err
    code, shown, _ = polyscene("analyse", "gradients", "--help")
    assert code == 0
    assert "batch_size" in shown


def test_features_of_two_models(dense_run, tmp_path, capsys):
    out = tmp_path / "out"
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((dense_run / "model.safetensors").read_bytes())
    words = [str(dense_run), str(copy), f"out={out}", "count=2", "layers=[layer1, layer4]", "device=cpu"]
    assert analyse("features", words) == 0
    found = read_results(out / "results.json")
    # The second model is the first: its features are the same.
    assert [metric.key for metric in found.metrics] == ["variance", "cka_rcm_copy"]
    assert found.values["cka_rcm_copy"] == pytest.approx(1)
    assert set(found.per_class["cka_rcm_copy"]["weights"]) == {
        f"{task} {layer}" for task in ("segmentation", "depth") for layer in ("layer1", "layer4")
    }
    assert 0 < found.values["variance"] <= 1
    assert [picture.file for picture in found.pictures] == [
        "pictures/features_segmentation.png",
        "pictures/features_depth.png",
    ]
    drawn = np.asarray(Image.open(out / "pictures" / "features_depth.png").convert("RGB")).astype(int)
    assert (np.ptp(drawn, axis=-1) > 60).mean() > 0.1  # colours, not only the page
    assert f"CKA of RCM ({copy.name})" in capsys.readouterr().out


def test_features_of_named_images_and_tasks(dense_run, photos, tmp_path):
    out = tmp_path / "out"
    words = [str(dense_run), f"out={out}", f"images={photos}", "count=1", "tasks=[depth]", "longest=64", "device=cpu"]
    assert analyse("features", words) == 0
    found = results(out)
    assert found["protocol"]["images_shown"] == 1
    assert [picture["file"] for picture in found["pictures"]] == ["pictures/features_depth.png"]


def test_parameters_of_a_run(dense_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert analyse("parameters", [str(dense_run), f"out={out}", "tasks=2"]) == 0
    found = read_results(out / "results.json")
    assert found.values["single"] == pytest.approx(2 * found.values["multi_task"])
    assert found.values["multi_task"] < found.values["task_norms"] < found.values["rcm"] < found.values["single"]
    own = found.protocol["counted"]["rcm"]
    assert own["encoder"][1] - own["encoder"][0] == sum(own["of_task"].values())
    assert (out / "pictures" / "parameters.png").stat().st_size > 1000
    assert "RCM" in capsys.readouterr().out


def test_parameters_of_a_shipped_config(tmp_path):
    out = tmp_path / "out"
    assert analyse("parameters", ["multitask/scenes/rcm", "arch=resnet10t", "tasks=1", f"out={out}"]) == 0
    assert results(out)["protocol"]["arch"] == "resnet10t"
    with pytest.raises(UserError, match="out is required"):
        analyse("parameters", ["multitask/scenes/rcm", "arch=resnet10t"])


def test_the_default_folder_is_in_the_run(dense_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes((dense_run / "model.safetensors").read_bytes())
    assert analyse("parameters", [str(run), "tasks=1"]) == 0
    assert (run / "analysis" / "parameters" / "results.json").is_file()
    # A merged or copied model does not know its images.
    with pytest.raises(UserError, match=r"no config\.yaml .* add data="):
        analyse("gradients", [str(run)])
    assert not (run / "analysis" / "gradients").exists()


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("losses", ["RUN"], "'losses' does not exist; choose from gradients, features, parameters"),
        ("gradients", ["batches=3"], "no run is named"),
        ("gradients", ["RUN", "RUN2"], "one run, not at 2"),
        ("features", ["RUN", "RUN"], "named twice"),
        ("features", ["RUN", "layers=[layer5]"], "layer5"),
        ("features", ["RUN", "layers=[]"], "layers"),
        ("features", ["RUN", "count=0"], "count=0"),
        ("gradients", ["RUN", "batches=2"], "batches=2"),
        ("gradients", ["RUN", "tasks=[edges]"], "'edges' is not in this model"),
        ("gradients", ["RUN", "tasks=[depth]"], "1 task cannot be compared"),
        ("features", ["RUN", "tasks=[edges]"], "'edges' is not in this model"),
        ("features", ["RUN", "tasks=[depth, depth]"], "twice"),
        ("parameters", ["RUN", "tasks=0"], "tasks=0"),
        ("parameters", ["RUN", "arch=convnext_atto"], "convnext_atto"),
        ("gradients", ["nowhere"], "nowhere"),
        ("parameters", ["RUN", "batches=3"], "batches"),
    ],
)
def test_refusals_come_before_any_work(dense_run, tmp_path, what, words, message):
    out = tmp_path / "out"
    named = [str(dense_run) if word == "RUN" else word for word in words]
    with pytest.raises(UserError, match=message):
        analyse(what, [*named, f"out={out}", *(["workers=0"] if what == "gradients" else [])])
    assert not out.exists()
