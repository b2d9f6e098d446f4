"""Wrong inputs end in one line that names the file and the way out."""

import pickle
import re

import pytest
import safetensors.torch
import timm
import torch

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights, load_backbone, read_weights, write_weights


def message_of(path, **options):
    with pytest.raises(UserError) as caught:
        read_weights(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert ";" in message  # what is wrong; what to do
    return message


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"", "is empty"),
        (b"backbone: resnet50\nepochs: 3\n", "is a text file"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not a weight file of a known kind"),
        (b"PK\x03\x04" + bytes(100), "damaged or incomplete"),
        (b"\x80", "damaged or incomplete"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"a": 1}), "holds no tensors"),
        (pickle.dumps({"model": {"b": "x"}}), "holds no tensors"),
    ],
)
def test_files_that_are_not_weights(tmp_path, content, phrase):
    (tmp_path / "w.pth").write_bytes(content)
    assert phrase in message_of(tmp_path / "w.pth")


def test_missing_file_and_empty_directory(tmp_path):
    assert "no such file" in message_of(tmp_path / "nowhere.pth")
    assert "holds neither backbone.safetensors nor checkpoints/" in message_of(tmp_path)


def test_moco_export_of_a_run_without_checkpoints(tmp_path, states):
    write_weights(BackboneWeights("resnet18", states["resnet18"]), tmp_path / "backbone.safetensors")
    with pytest.raises(UserError, match="has no checkpoint left in checkpoints/"):
        read_weights(tmp_path, with_training=True)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path, kind, share):
    path = tmp_path / "w"
    state = {"conv1.weight": torch.ones(1000), "layer1.0.conv1.weight": torch.ones(1000)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    assert "damaged or incomplete" in message_of(path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "Vision Transformer"),
        (["class_token", "conv_proj.weight"], "Vision Transformer"),
        (["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"], "CLIP"),
        (["module.base_encoder.conv1.weight"], "MoCo-v3"),
        (["res2_0_branch2a_w", "conv1_w"], "Caffe2"),
        (["resnet.embedder.embedder.convolution.weight"], "Hugging Face"),
        (["stages.0.blocks.0.conv_dw.weight"], "ConvNeXt"),
        (["net.layer1.0.conv1.weight", "net.conv1.weight"], "a ResNet inside another model"),
        (["features.0.weight", "features.3.weight"], "unknown names (features.0.weight, features.3.weight"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_other_networks_are_named(tmp_path, names, kind, wrapped):
    state = {name: torch.zeros(2) for name in names}
    path = saved(tmp_path / "w.pth", {"state_dict": state} if wrapped else state)
    assert kind in message_of(path)


def test_incomplete_resnet_names_the_nearest(tmp_path, states):
    state = {key: value for key, value in states["resnet18"].items() if not key.startswith("layer2.1.conv")}
    message = message_of(saved(tmp_path / "w.pth", state))
    assert "is nearly resnet18, but 2 missing (layer2.1.conv1.weight, layer2.1.conv2.weight)" in message

    state = {**states["resnet18"], "extra.weight": torch.zeros(3), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    message = message_of(saved(tmp_path / "v.pth", state))
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7))" in message


def test_unknown_skeletons_ask_for_the_architecture(tmp_path, states):
    state = {key: value for key, value in states["resnet18"].items() if not key.startswith("layer4.1.")}
    message = message_of(saved(tmp_path / "w.pth", state))
    assert "basic blocks 2-2-2-1" in message
    assert "arch=NAME" in message


def test_a_stray_tensor_beside_the_encoder_is_not_ignored(tmp_path, states):
    state = {f"module.encoder_q.{key}": value for key, value in states["resnet18"].items()}
    path = saved(tmp_path / "w.pth", {"state_dict": {**state, "module.surprise": torch.zeros(1)}})
    assert "(MoCo checkpoint): is nearly resnet18, but 1 unexpected (surprise)" in message_of(path)


def test_architecture_that_was_asked_for(tmp_path, states):
    path = saved(tmp_path / "w.pth", states["resnet18"])
    message = message_of(path, arch="resnet50")
    assert "is not resnet50" in message
    assert re.search(r"\d+ missing \(.*\), \d+ of another shape", message)
    with pytest.raises(UserError, match=r"'resnet5O' is not known to timm; did you mean resnet50"):
        read_weights(path, arch="resnet5O")


def test_backbone_of_another_architecture_does_not_load(tmp_path, states):
    write_weights(BackboneWeights("resnet50", states["resnet50"]), tmp_path / "backbone.safetensors")
    weights = read_weights(tmp_path / "backbone.safetensors")
    model = timm.create_model("resnet18", num_classes=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone(model, weights)
    message = str(caught.value)
    assert "\n" not in message
    assert "backbone.safetensors (torchvision/timm state dict, resnet50) does not fit the model" in message
    assert "unexpected" in message
    assert "of another shape" in message
    assert "timm.create_model('resnet50', num_classes=0)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_model_with_a_classifier_is_told_apart(states):
    with pytest.raises(UserError, match=r"2 missing \(fc\.weight, fc\.bias\); .*num_classes=0"):
        load_backbone(timm.create_model("resnet18"), BackboneWeights("resnet18", states["resnet18"]))


def test_diverged_weights(tmp_path, states):
    state = {**states["resnet18"], "bn1.running_var": torch.full((64,), float("nan"))}
    message = message_of(saved(tmp_path / "w.pth", state))
    assert "1 tensors hold NaN or infinity (first: bn1.running_var)" in message


def test_checkpoint_of_another_version(tmp_path):
    path = saved(tmp_path / "w.pt", {"format": "polyscene-pretrain-9", "model": {}})
    assert "'polyscene-pretrain-9' is not 'polyscene-pretrain-1'" in message_of(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_whole_modules_and_torchscript(tmp_path):
    path = saved(tmp_path / "module.pth", torch.nn.Linear(2, 2))
    assert "refused" in message_of(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in message_of(tmp_path / "script.pt")
    tensor = saved(tmp_path / "tensor.pt", torch.zeros(2))
    assert "holds a Tensor, not a dictionary" in message_of(tensor)


def test_zip_that_torch_did_not_write(tmp_path):
    import numpy as np

    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    assert "not one that torch.save wrote" in message_of(tmp_path / "w.npz")
