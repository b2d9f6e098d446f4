"""Backbones with random weights, and the files that other programs would have written from them."""

import shutil

import pytest
import timm
import torch

ARCHS = ("resnet18", "resnet50")


def make_backbone(arch, seed=0):
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=0).eval()
    # Statistics away from 0 and 1, so that a lost or swapped one changes the output.
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
    return model


@pytest.fixture(scope="session")
def backbones():
    return {arch: make_backbone(arch) for arch in ARCHS}


@pytest.fixture(scope="session")
def states(backbones):
    return {
        arch: {key: value.clone() for key, value in model.state_dict().items()} for arch, model in backbones.items()
    }


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture
def tmp_path(tmp_path):
    """Pytest's folder, emptied at once: these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def make_checkpoint(states):
    """The content of a training checkpoint of ours, with small queues."""

    def make(arch="resnet18", step=1200, slots=6):
        generator = torch.Generator().manual_seed(step)
        width = 512 if arch in ("resnet18", "resnet34") else 2048
        head = {
            "0.weight": torch.randn(16, width, generator=generator),
            "0.bias": torch.randn(16, generator=generator),
            "2.weight": torch.randn(8, 16, generator=generator),
            "2.bias": torch.randn(8, generator=generator),
        }
        model = {f"query.backbone.{key}": value for key, value in states[arch].items()}
        model |= {f"key.backbone.{key}": value * 2 for key, value in states[arch].items()}
        model |= {f"query.head.{key}": value for key, value in head.items()}
        model |= {f"key.head.{key}": value + 1 for key, value in head.items()}
        model |= {
            "queue.embeddings": torch.randn(slots, 8, generator=generator),
            "queue.features": torch.randn(slots, width, generator=generator),
            "queue.pointer": torch.tensor(4),
            "queue.written": torch.tensor(4),
        }
        return {
            "format": "polyscene-pretrain-1",
            "step": step,
            "epoch": 2.5,
            "arch": arch,
            "dataset": "folder",
            "config_hash": "abc",
            "model": model,
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.3}]},
        }

    return make


@pytest.fixture
def make_run(make_checkpoint, tmp_path):
    """A run directory with checkpoints and, if asked for, a finished backbone."""
    from polyscene.runtime.weights import BackboneWeights, write_weights

    def make(steps=(800, 1200), last="step-00001200.pt", finished=None):
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        for step in steps:
            torch.save(make_checkpoint(step=step), run / "checkpoints" / f"step-{step:08d}.pt")
        if last is not None:
            (run / "checkpoints" / "last").write_text(last + "\n")
        if finished is not None:
            weights = BackboneWeights("resnet18", finished, {"epochs": "3", "dataset": "folder", "step": "1500"})
            write_weights(weights, run / "backbone.safetensors", "safetensors")
        return run

    return make
