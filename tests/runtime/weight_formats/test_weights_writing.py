"""Exports are complete, load where they are meant to, and come back unchanged."""

import errno
import functools
import os
import pickle
import signal

import numpy as np
import pytest
import safetensors
import timm
import torch
import torchvision

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import WRITABLE_FORMATS, BackboneWeights, load_backbone, read_weights, write_weights


@pytest.fixture(scope="module")
def weights_of(make_checkpoint, tmp_path_factory):
    """Backbone and training state, read from a checkpoint of ours."""

    @functools.cache
    def read(arch):
        file = tmp_path_factory.mktemp("checkpoint") / "step.pt"
        torch.save(make_checkpoint(arch), file)
        weights = read_weights(file, with_training=True)
        file.unlink()
        return weights

    return read


@pytest.mark.parametrize("format", WRITABLE_FORMATS)
def test_round_trip_gives_identical_features(weights_of, backbones, arch, format, tmp_path):
    weights = weights_of(arch)
    write_weights(weights, tmp_path / "out", format)
    again = read_weights(tmp_path / "out")
    assert again.arch == arch
    counters = sum("num_batches" in key for key in weights.state)
    assert again.counters_set == (counters if format == "detectron2" else 0)
    for key, value in weights.state.items():
        if format != "detectron2" or "num_batches" not in key:
            assert torch.equal(again.state[key], value), key
    model = timm.create_model(arch, num_classes=0).eval()
    total = len(weights.state)
    report = load_backbone(model, again)
    assert report.startswith(f"{total - again.counters_set}/{total} tensors matched")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(images), backbones[arch](images))


def test_torchvision_accepts_all_but_the_classifier(weights_of, arch, tmp_path):
    write_weights(weights_of(arch), tmp_path / "out.pth", "torchvision")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    model = getattr(torchvision.models, arch)(weights=None)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []
    model.load_state_dict({**state, "fc.weight": model.fc.weight, "fc.bias": model.fc.bias}, strict=True)


@pytest.mark.parametrize("format", ["timm", "safetensors"])
def test_timm_accepts_all(weights_of, arch, format, tmp_path):
    name = "out.safetensors" if format == "safetensors" else "out.pth"
    weights = weights_of(arch)
    write_weights(weights, tmp_path / name, format)
    model = timm.create_model(arch, num_classes=0)
    timm.models.load_checkpoint(model, str(tmp_path / name), strict=True)
    assert torch.equal(model.state_dict()["layer4.0.conv1.weight"], weights.state["layer4.0.conv1.weight"])


def test_safetensors_metadata(weights_of, tmp_path):
    write_weights(weights_of("resnet18"), tmp_path / "b.safetensors", "safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "arch": "resnet18",
        "epochs": "2.5",
        "step": "1200",
        "dataset": "folder",
        "config_hash": "abc",
    }
    assert read_weights(tmp_path / "b.safetensors").metadata == {
        key: value for key, value in metadata.items() if key not in ("format", "arch")
    }


def test_moco_layout_and_round_trip(weights_of, make_checkpoint, tmp_path):
    weights = weights_of("resnet18")
    source = make_checkpoint("resnet18")["model"]
    write_weights(weights, tmp_path / "moco.pth.tar", "moco")
    content = torch.load(tmp_path / "moco.pth.tar", weights_only=True)
    state = content["state_dict"]
    assert (content["epoch"], content["arch"]) == (2, "resnet18")
    assert torch.equal(state["module.queue"], source["queue.embeddings"].T)
    assert torch.equal(state["module.queue_backbone"], source["queue.features"].T)
    assert state["module.queue_ptr"].tolist() == [4]
    for encoder, role in (("encoder_q", "query"), ("encoder_k", "key")):
        for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
            assert torch.equal(state[f"module.{encoder}.fc.{part}"], source[f"{role}.head.{part}"])
        assert torch.equal(
            state[f"module.{encoder}.layer1.0.conv1.weight"], source[f"{role}.backbone.layer1.0.conv1.weight"]
        )
    assert len(state) == 2 * (120 + 4) + 3
    # Exactly the names of MoCo's model, whose encoders are torchvision networks with an MLP for fc.
    encoder = torchvision.models.resnet18()
    encoder.fc = torch.nn.Sequential(torch.nn.Linear(512, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    prefix = "module.encoder_k."
    encoder.load_state_dict(
        {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}, strict=True
    )

    again = read_weights(tmp_path / "moco.pth.tar", with_training=True)
    write_weights(again, tmp_path / "again.pth.tar", "moco")
    assert (tmp_path / "moco.pth.tar").read_bytes() == (tmp_path / "again.pth.tar").read_bytes()


def test_moco_needs_the_whole_training_state(states, tmp_path):
    write_weights(BackboneWeights("resnet18", states["resnet18"]), tmp_path / "b.safetensors")
    weights = read_weights(tmp_path / "b.safetensors", with_training=True)
    with pytest.raises(
        UserError, match=r"needs the momentum encoder and the queues, and .*b\.safetensors holds the backbone only"
    ):
        write_weights(weights, tmp_path / "moco.pth", "moco")
    assert not (tmp_path / "moco.pth").exists()


def test_detectron2_is_a_plain_pickle_of_arrays(weights_of, arch, tmp_path):
    weights = weights_of(arch)
    write_weights(weights, tmp_path / "R.pkl", "detectron2")
    data = (tmp_path / "R.pkl").read_bytes()
    content = pickle.loads(data)
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    assert all(type(array) is np.ndarray and array.dtype == np.float32 for array in content["model"].values())
    assert len(content["model"]) == {"resnet18": 100, "resnet50": 265}[arch]
    assert np.array_equal(
        content["model"]["res3.0.shortcut.norm.weight"], weights.state["layer2.0.downsample.1.weight"]
    )
    # Readable beside every numpy: only the name that both generations understand.
    assert b"numpy._core" not in data[:500]
    assert b"numpy.core.multiarray" in data[:500]


def test_networks_that_a_format_cannot_hold(tmp_path):
    deep = BackboneWeights("resnet18d", timm.create_model("resnet18d", num_classes=0).state_dict())
    with pytest.raises(UserError, match="torchvision has no resnet18d"):
        write_weights(deep, tmp_path / "a", "torchvision")
    with pytest.raises(UserError, match=r"no place for conv1\.0\.weight of resnet18d"):
        write_weights(deep, tmp_path / "a", "detectron2")
    write_weights(deep, tmp_path / "a", "timm")
    assert read_weights(tmp_path / "a").arch == "resnet18d"


def test_incomplete_weights_and_unknown_formats_are_not_written(states, tmp_path):
    partial = {key: value for key, value in states["resnet18"].items() if key != "layer1.0.conv1.weight"}
    with pytest.raises(UserError, match=r"not a complete resnet18: 1 missing \(layer1\.0\.conv1\.weight\)"):
        write_weights(BackboneWeights("resnet18", partial), tmp_path / "a")
    with pytest.raises(UserError, match="'onnx' is not known; choose one of safetensors, torchvision"):
        write_weights(BackboneWeights("resnet18", states["resnet18"]), tmp_path / "a", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_same_weights_give_the_same_bytes_wherever_written(states, tmp_path):
    weights = BackboneWeights("resnet18", states["resnet18"], {"epochs": "1", "dataset": "Größe", "step": "3"})
    for format in ("safetensors", "torchvision", "detectron2"):
        write_weights(weights, tmp_path / "one" / "a.bin", format)
        write_weights(weights, tmp_path / "two" / "other.bin", format)
        assert (tmp_path / "one" / "a.bin").read_bytes() == (tmp_path / "two" / "other.bin").read_bytes()


def test_channels_last_and_cast_weights_are_written_plainly(tmp_path):
    model = timm.create_model("resnet18", num_classes=0).to(memory_format=torch.channels_last)
    weights = BackboneWeights("resnet18", model.state_dict())
    for format in ("safetensors", "detectron2"):
        write_weights(weights, tmp_path / "a", format)
        assert torch.equal(read_weights(tmp_path / "a").state["conv1.weight"], model.conv1.weight)


@pytest.mark.parametrize("format", ["safetensors", "timm", "detectron2"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(states, tmp_path, monkeypatch, format):
    target = tmp_path / "w.bin"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk full while writing .*w\.bin"):
        write_weights(BackboneWeights("resnet18", states["resnet18"]), target, format)
    assert [file.name for file in tmp_path.iterdir()] == ["w.bin"]
    assert target.read_bytes() == b"old"


def test_places_that_cannot_be_written(states, tmp_path):
    weights = BackboneWeights("resnet18", states["resnet18"])
    with pytest.raises(UserError, match="is a directory; name the file"):
        write_weights(weights, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(weights, tmp_path / "file" / "below.safetensors")


@pytest.mark.parametrize("format", ["timm", "safetensors", "detectron2"])
def test_full_disk_while_the_tensors_are_written(states, tmp_path, format):
    # A limit on file sizes stands for the full disk: writes fail half-way, with the error that a disk gives.
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(UserError, match=r"disk full while writing .*w\.bin"):
            write_weights(BackboneWeights("resnet18", states["resnet18"]), tmp_path / "w.bin", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
