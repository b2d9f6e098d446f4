"""A moments file gives back what was saved, and only for the weights it belongs to."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from polyscene.downstream.multitask.rcm.moments_file import (
    load_moments,
    moments_metadata,
    read_metadata,
    save_moments,
)
from polyscene.runtime.errors import UserError


@pytest.fixture
def saved(weights, moments, tmp_path):
    path = tmp_path / "moments.safetensors"
    found = {name: each for name, each in moments("resnet10t").items() if "layer1" in name}
    save_moments(path, found, moments_metadata(weights("resnet10t"), 3, source="three images"))
    return path, found


def test_round_trip(saved, weights):
    path, found = saved
    again = load_moments(path, weights("resnet10t"))
    assert again.keys() == found.keys()
    for name, each in found.items():
        assert all(torch.equal(getattr(again[name], part), value) for part, value in vars(each).items())
    metadata = read_metadata(path)
    assert (metadata["arch"], metadata["images"], metadata["source"]) == ("resnet10t", "3", "three images")


def test_moments_of_other_weights_are_refused(saved, weights):
    path, _ = saved
    own = weights("resnet10t")
    changed = replace(own, state={**own.state, "bn1.bias": own.state["bn1.bias"] + 1e-3})
    for other in (changed, weights("resnet14t")):
        with pytest.raises(UserError, match="of other weights"):
            load_moments(path, other)
    assert load_moments(path)


def test_damaged_and_other_files_are_refused(saved, tmp_path):
    path, _ = saved
    with pytest.raises(UserError, match="does not exist"):
        load_moments(tmp_path / "gone.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"half\.safetensors' cannot be read"):
        load_moments(half)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="does not hold response moments"):
        load_moments(other)
    state = safetensors.torch.load_file(path)
    state.pop("layer1.0.conv1.total")
    safetensors.torch.save_file(state, other, {"kind": "response moments"})
    with pytest.raises(UserError, match=r"other\.safetensors.*'layer1\.0\.conv1' are incomplete"):
        load_moments(other)
