import shutil

import pytest
import safetensors.torch
import timm
import torch

from polyscene.downstream.multitask.export.plain_file import load_plain
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.launch.export import export
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import read_weights


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=0).state_dict()


@pytest.fixture
def tmp_path(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)  # these files are large


@pytest.fixture
def run(state, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    model = {f"{role}.backbone.{key}": value for role in ("query", "key") for key, value in state.items()}
    model |= {f"{role}.head.0.weight": torch.ones(4, 512) for role in ("query", "key")}
    model |= {
        "queue.embeddings": torch.ones(6, 4),
        "queue.features": torch.ones(6, 512),
        "queue.pointer": torch.tensor(2),
    }
    content = {"format": "polyscene-pretrain-1", "step": 12, "epoch": 3.0, "arch": "resnet18", "model": model}
    torch.save(content, folder / "step-00000012.pt")
    (folder / "last").write_text("step-00000012.pt")
    return tmp_path / "run"


@pytest.mark.parametrize("format", ["safetensors", "torchvision", "timm", "moco", "detectron2"])
def test_a_run_in_every_format(run, state, tmp_path, format):
    out = tmp_path / "new" / "out.bin"
    line = export(run, out, format)
    assert "\n" not in line
    assert line.startswith(f"{out}: resnet18, 120 tensors, {format} format, from {run}")
    assert torch.equal(read_weights(out).state["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_architecture_can_be_named(run, tmp_path):
    assert export(run, tmp_path / "out.pth", "timm", arch="resnet18").startswith(f"{tmp_path}/out.pth: resnet18")
    with pytest.raises(UserError, match="is not resnet34"):
        export(run, tmp_path / "out.pth", "timm", arch="resnet34")


def test_strings_will_do_and_old_files_are_replaced(run, tmp_path):
    out = tmp_path / "out.pth"
    out.write_text("old")
    export(str(run), str(out), "timm")
    assert read_weights(out).arch == "resnet18"


def test_backbone_alone_cannot_become_moco(state, tmp_path):
    safetensors.torch.save_file(dict(state), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="momentum encoder and the queues"):
        export(tmp_path / "b.safetensors", tmp_path / "moco.pth", "moco")
    assert not (tmp_path / "moco.pth").exists()


def test_source_is_never_overwritten(run, state, tmp_path):
    source = tmp_path / "b.safetensors"
    safetensors.torch.save_file(dict(state), source)
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link"):
        with pytest.raises(UserError, match="is the source itself"):
            export(source, out, "timm")
    with pytest.raises(UserError, match="is the source itself"):
        export(run, run / "checkpoints" / "step-00000012.pt", "timm")
    assert source.read_bytes() == before


def test_unknown_format_is_refused_before_reading(tmp_path):
    with pytest.raises(UserError, match="--format onnx: not known; choose one of safetensors, torchvision, timm"):
        export(tmp_path / "missing", tmp_path / "out", "onnx")


def test_folded_tasks_give_the_outputs_of_the_model(dense_run, polyscene, tmp_path):
    code, printed, err = polyscene("export", dense_run, tmp_path / "out", "--fold")
    assert code == 0, err
    assert printed.startswith(f"{tmp_path / 'out'}: segmentation.safetensors, depth.safetensors, plain resnet10t")
    images = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        expected = load_model(dense_run).model(images).final
        for task, output in expected.items():
            folded = load_plain(tmp_path / "out" / f"{task}.safetensors").network(images)
            assert (folded - output).abs().max() < 1e-5 * output.abs().max()


def test_one_folded_task(dense_run, polyscene, tmp_path):
    assert polyscene("export", dense_run, tmp_path / "out", "--fold", "--task", "depth")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["depth.safetensors"]


def test_folding_what_cannot_be_folded(run, dense_run, polyscene, tmp_path):
    out = tmp_path / "out"
    (run / "backbone.safetensors").touch()
    refused = [
        ((run, out, "--fold"), f"'{run}' is a pretraining run, which has no tasks to fold"),
        ((dense_run, out), f"'{dense_run}' is a multi-task run; write its tasks as plain networks with --fold"),
        ((dense_run, out, "--fold", "--format", "timm"), "--format timm: not for folded networks"),
        ((dense_run, out, "--fold", "--task", "sky"), "task 'sky' is not in this model"),
        ((dense_run, out, "--task", "depth"), "--task needs --fold"),
        ((dense_run, out, "--fold", "--arch", "resnet18"), "--arch is for backbones"),
        ((tmp_path / "missing", out, "--fold"), "missing"),
    ]
    for arguments, expected in refused:
        code, _, err = polyscene("export", *arguments)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
    assert not out.exists()
