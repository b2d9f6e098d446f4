"""Folded networks as files: safetensors that come back, ONNX that another program runs."""

import json

import numpy as np
import pytest
import torch

from polyscene.downstream.multitask.export.fold import fold_model
from polyscene.downstream.multitask.export.onnx_file import require_onnx, save_onnx
from polyscene.downstream.multitask.export.plain_file import load_plain, plain_header, save_plain
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("kind", ["rcm", "multi_task"])
@torch.no_grad()
def test_plain_file(trained, images, tmp_path, kind):
    saved, path = trained(kind, head="aspp", output_stride=8), tmp_path / "normals.safetensors"
    network = save_plain(path, saved, "normals")
    again = load_plain(path)
    assert torch.equal(again.network(images), network(images))
    assert again.record == saved.tasks["normals"]
    assert json.loads(again.header["mean"]) == list(IMAGENET_MEAN)
    assert json.loads(again.header["std"]) == list(IMAGENET_STD)
    assert json.loads(again.header["metadata"]) == {"steps": "3"}
    assert (again.header["arch"], again.header["head"], again.header["output_stride"]) == ("resnet10t", "aspp", "8")


def test_other_files_are_one_line(trained, tmp_path):
    path = tmp_path / "edges.safetensors"
    save_plain(path, trained("frozen"), "edges")
    with pytest.raises(UserError, match="is no polyscene multi-task model"):
        load_model(path)
    path.write_bytes(path.read_bytes().replace(b'"resnet10t"', b'"resnet99t"'))
    with pytest.raises(UserError, match="resnet99t") as error:
        load_plain(path)
    assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes().replace(b'"resnet99t"', b'"resnet14t"'))
    with pytest.raises(UserError, match="do not fit its header"):
        load_plain(path)
    with pytest.raises(UserError, match="no such file"):
        load_plain(tmp_path / "absent")


@torch.no_grad()
def test_onnx_file(trained, images, tmp_path):
    """Free batch size and image size; the same numbers as the unfolded model."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    saved, path = trained("rcm"), tmp_path / "normals.onnx"
    header = plain_header(saved, "normals")
    save_onnx(path, fold_model(saved.model, "normals"), header)
    assert [file.name for file in tmp_path.iterdir()] == ["normals.onnx"]  # no second file with the weights
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == header
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for inputs in (images, images[:1, :, :37, :50], images[:2, :, :17, :33], images[:1].repeat(1, 1, 3, 2)):
        (found,) = session.run(["output"], {"images": inputs.contiguous().numpy()})
        expected = saved.model(inputs, ["normals"]).final["normals"].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript; run: pip install 'polyscene\[onnx\]'"):
        require_onnx()
