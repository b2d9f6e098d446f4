"""An image-level task as an ONNX file."""

import pytest
import torch

from polyscene.downstream.multitask.data.opening import TaskRecord
from polyscene.downstream.multitask.export.fold import fold_model
from polyscene.downstream.multitask.export.onnx_file import save_onnx
from polyscene.downstream.multitask.export.plain_file import plain_header
from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.models.model_file import SavedModel


@torch.no_grad()
def test_onnx_file(weights, disturb, images, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    options = ModelOptions("multi_task", head_width=8)
    model = build_model(options, weights("resnet10t"), {"scene": 3}, image_level=("scene",))
    disturb(model, "scene")
    record = TaskRecord("scene", "folder", 3, ("a", "b", "c"), {}, "scene.py", True)
    header = plain_header(SavedModel(model, "resnet10t", options, {"scene": record}), "scene")
    save_onnx(tmp_path / "scene.onnx", fold_model(model, "scene"), header)
    session_options = runtime.SessionOptions()
    session_options.intra_op_num_threads = 1
    session = runtime.InferenceSession(tmp_path / "scene.onnx", session_options, providers=["CPUExecutionProvider"])
    for inputs in (images, images[:1, :, :37, :50]):
        (found,) = session.run(["output"], {"images": inputs.contiguous().numpy()})
        expected = model.eval()(inputs).final["scene"].numpy()
        assert found.shape == expected.shape == (len(inputs), 3, 1, 1)
        assert found == pytest.approx(expected, abs=1e-4)
