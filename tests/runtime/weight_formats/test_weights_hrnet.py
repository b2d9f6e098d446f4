"""HRNets as timm, its model hub and its feature extractors store them."""

import pytest
import safetensors.torch
import timm
import torch

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import load_backbone, read_weights, write_weights

ARCH = "hrnet_w18_small_v2"
POOLING = ("incre_modules.", "downsamp_modules.", "final_layer.")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model(ARCH, num_classes=0).state_dict()


@pytest.fixture(scope="module")
def classifier():
    return {"classifier.weight": torch.zeros(1000, 2048), "classifier.bias": torch.zeros(1000)}


@pytest.mark.parametrize("arch", [ARCH, None])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_timms_file_with_its_classifier(tmp_path, state, classifier, arch, kind):
    path = tmp_path / f"hrnet.{kind}"
    if kind == "pth":
        torch.save({**state, **classifier}, path)
    else:
        safetensors.torch.save_file({**state, **classifier}, path)
    weights = read_weights(path, arch)
    assert weights.arch == ARCH
    assert weights.left_aside == {"classifier": 2}
    assert weights.state.keys() == state.keys()
    assert all(torch.equal(weights.state[key], value) for key, value in state.items())
    model = timm.create_model(ARCH, num_classes=0)
    assert load_backbone(model, weights).startswith(f"{len(state)}/{len(state)} tensors matched")


# The parts that lead to the classifier: with timm's features_only=True the first is there, with feature_location=""
# none.
@pytest.mark.parametrize("without", [POOLING[1:], POOLING])
def test_files_of_features(tmp_path, state, without):
    kept = {key: value for key, value in state.items() if not key.startswith(without)}
    torch.save(kept, tmp_path / "hrnet.pth")
    weights = read_weights(tmp_path / "hrnet.pth")
    assert weights.arch == ARCH
    assert weights.state.keys() == kept.keys() != state.keys()
    location = "" if without == POOLING else "incre"
    body = timm.create_model(ARCH, features_only=True, feature_location=location)
    assert load_backbone(body, weights).startswith(f"{len(kept)}/{len(kept)} tensors matched")


def test_written_and_read_again(tmp_path, state):
    torch.save({key: value for key, value in state.items() if not key.startswith(POOLING)}, tmp_path / "hrnet.pth")
    weights = read_weights(tmp_path / "hrnet.pth")
    write_weights(weights, tmp_path / "again.safetensors")
    again = read_weights(tmp_path / "again.safetensors", ARCH)
    assert again.state.keys() == weights.state.keys()
    assert all(torch.equal(again.state[key], value) for key, value in weights.state.items())


@pytest.mark.parametrize("lost", ["stage4.1.fuse_layers.0.1.0.weight", "incre_modules.0.0.conv1.weight"])
def test_holes_are_not_accepted(tmp_path, state, lost):
    torch.save({key: value for key, value in state.items() if key != lost}, tmp_path / "hrnet.pth")
    for arch, phrase in ((ARCH, "is not"), (None, "is nearly")):
        with pytest.raises(UserError, match=f"{phrase} {ARCH}.*1 missing \\({lost}\\)"):
            read_weights(tmp_path / "hrnet.pth", arch)


def test_widths_are_told_apart(tmp_path, state):
    torch.save(state, tmp_path / "hrnet.pth")
    with pytest.raises(UserError, match="is not hrnet_w18: "):
        read_weights(tmp_path / "hrnet.pth", "hrnet_w18")
