"""Every refusal is one line, comes before any work, and leaves no run directory behind."""

import dataclasses

import pytest
import safetensors.torch
import timm
import torch

from polyscene.downstream.multitask.balancing.build import BALANCERS
from polyscene.downstream.multitask.balancing.gradients import LAYERS
from polyscene.downstream.multitask.balancing.mgda import NORMALIZE
from polyscene.downstream.multitask.data import opening
from polyscene.downstream.multitask.heads.build import HEADS
from polyscene.downstream.multitask.models.build import KINDS
from polyscene.downstream.multitask.mti_net import build as multi_scale
from polyscene.downstream.multitask.mti_net.fpm import SOFTMAXES
from polyscene.downstream.multitask.mti_net.pad_net import DISTILLATIONS
from polyscene.downstream.multitask.optimizers import OPTIMIZERS
from polyscene.downstream.multitask.rcm.network import REPARAMETERIZE
from polyscene.downstream.multitask.schedule import SCHEDULES
from polyscene.launch import multitask_config
from polyscene.launch.multitask_config import MultitaskConfig
from polyscene.runtime.config import describe


def choices(key):
    kind = next(kind for name, kind, *_ in describe(MultitaskConfig) if name == key)
    return kind.split(" | ")


def test_the_choices_of_the_keys_are_those_of_the_libraries():
    """The config module imports no torch, so it repeats them."""
    assert choices("model.kind") == [*KINDS, *multi_scale.INTERACTING]
    assert choices("model.head") == [*HEADS, *multi_scale.HEADS, "null"]
    assert multitask_config.INTERACTING == multi_scale.INTERACTING
    assert multitask_config.MULTI_SCALE_HEADS == multi_scale.HEADS
    assert choices("model.mti_net.fpm_softmax") == list(SOFTMAXES)
    assert choices("model.pad_net.distillation") == list(DISTILLATIONS)
    assert choices("balancing.strategy") == list(BALANCERS)
    assert choices("balancing.shared_layers") == list(LAYERS)
    assert choices("balancing.mgda_normalize") == list(NORMALIZE)
    assert choices("model.rcm.reparameterize") == list(REPARAMETERIZE)
    assert choices("optim.kind") == list(OPTIMIZERS)
    assert choices("optim.schedule") == list(SCHEDULES)
    assert choices("data.kind") == list(opening.KINDS)
    settings = {field.name: field.default for field in dataclasses.fields(opening.TaskSettings)}
    data = {field.name: field.default for field in dataclasses.fields(multitask_config.DenseDataConfig)}
    assert {name: data[name] for name in settings} == settings


REFUSED = {
    "unknown task": (["task=flying"], "has no task 'flying'"),
    "no labels": (["task=normals"], "has no folder normals, which task 'normals' needs"),
    "task twice": (["tasks=[depth,depth]"], "task 'depth' is named twice"),
    "no task": (["tasks=[]"], "tasks names no task"),
    "no task file": (["task=missing.py"], "task file 'missing.py' does not exist"),
    "no data": (["data.root=missing"], "'missing' has no folder images"),
    "no list": (["data.val=missing"], "has no list missing.txt"),
    "no weights": (["weights=null"], "weights is required"),
    "weights missing": (["weights=missing.pth"], "missing.pth"),
    "both lengths": (["epochs=3"], "both iterations and epochs are set"),
    "no length": (["iterations=null"], "neither iterations nor epochs is set"),
    "nothing to evaluate": (["iterations=0"], "set model.base=RUN"),
    "batch": (["batch_size=1"], "batch_size=1 is too small"),
    "large batch": (["batch_size=16"], "12 images do not fill one batch of 16; lower batch_size"),
    "small crop": (["augmentation.size=[16,64]"], "augmentation.size=[16, 64] is too small"),
    "small stretch": (["evaluate.stretch=[16,64]"], "evaluate.stretch=[16, 64] is too small"),
    "weight": (["task_weights.depth=0"], "task_weights.depth=0 must be a number above 0"),
    "weight of nothing": (["task_weights.sky=1"], "task_weights names 'sky', which is no task"),
    "rank without RI": (["model.rcm.rank=0.5", "model.rcm.response_init=false"], "needs model.rcm.response_init=true"),
    "no init images": (["model.rcm.init_images=missing"], "model.rcm.init_images: 'missing' does not exist"),
    "people": (["data.person_images_only=true"], "data.person_images_only=true needs the task parts"),
    "void class": (["data.void_class=true"], "void_class is a choice of nyud"),
    "seeds": (["seeds=[1,1]"], "seeds=[1, 1] must be one or more different numbers"),
    "no base": (["model.base=missing", "task=saliency"], "model.safetensors"),
    "base for all tasks": (["evaluate.all_tasks=true"], "needs model.base"),
    "shared base": (["model.base=x", "model.kind=multi_task"], "a shared encoder cannot take new tasks"),
    "single missing": (["evaluate.single=missing"], "cannot read 'missing/results.json'"),
    "unknown key": (["modell.kind=rcm"], "did you mean 'model.kind'?"),
    "kind": (["model.kind=rmc"], "'model.kind' must be"),
    "save never": (["checkpoint.every_minutes=null"], "are both null"),
    "auxiliary tasks of RCM": (["auxiliary_tasks=[saliency]"], "model.kind=rcm has none, use mti_net or pad_net"),
    "task twice over": (["model.kind=mti_net", "auxiliary_tasks=[depth]"], "is in tasks and in auxiliary_tasks"),
    "a head of its own": (["model.kind=mti_net", "model.head=aspp"], "has heads of its own; leave model.head out"),
    "four scales of RCM": (["model.head=aggregation"], "which model.kind=rcm does not have"),
    "no front ends": (["evaluate.front_ends=true"], "model.kind=rcm has no front ends"),
    "scales": (
        ["model.kind=mti_net", "augmentation.size=[64,64]", "model.scales=[8,4]"],
        "model.scales=[8, 4]: choose from [4, 8, 16, 32]",
    ),
    "width": (
        ["model.kind=pad_net", "augmentation.size=[64,64]", "model.pad_net.width=6"],
        "model.pad_net.width=6: give a multiple of 4",
    ),
    "gradients of what": (["balancing.strategy=mgda"], "model.kind=rcm has none, use multi_task, pad_net or mti_net"),
    "smoothing": (["balancing.dtp_smoothing=2", "balancing.strategy=dtp"], "dtp_smoothing=2 must be at most 1"),
    "crop for four scales": (["model.kind=mti_net"], "with cells of 32 pixels use at least 64 pixels"),
    "unknown network": (
        ["model.kind=mti_net", "arch=hrnet_w19", "augmentation.size=[64,64]"],
        "arch=hrnet_w19: timm",
    ),
    "no pyramid": (
        ["model.kind=mti_net", "arch=vgg11", "augmentation.size=[64,64]"],
        "is neither a ResNet nor an HRNet",
    ),
    "HRNet for one scale": (["weights=HRNET"], "is not a ResNet, which model.kind=rcm"),
    "device": (["device=tpu"], "'device' must be"),
}


def one_line(err):
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, dense_words, polyscene, tmp_path):
    words, expected = REFUSED[case]
    if "weights=HRNET" in words:
        torch.save(timm.create_model("hrnet_w18_small_v2").state_dict(), tmp_path / "hrnet.pth")
        words = [f"weights={tmp_path / 'hrnet.pth'}", "arch=null"]
    code, _, err = polyscene(*dense_words(tmp_path / "run", *words))
    assert code == 2
    assert expected in one_line(err)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A weights file of another backbone, in the shape of a pretraining run."""
    run = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("resnet18", num_classes=0).state_dict(), run / "backbone.safetensors")
    return run


def test_weights_of_another_architecture(pretrained, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"weights={pretrained}"))
    assert code == 2
    assert "is not resnet10t" in one_line(err)


def test_weights_that_are_a_multitask_run(dense_run, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"weights={dense_run}"))
    assert code == 2
    assert f"weights='{dense_run}' is a multi-task run" in one_line(err)


def test_a_base_that_is_a_pretraining_run(pretrained, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"model.base={pretrained}", "task=saliency"))
    assert code == 2
    assert "give a finished run of polyscene multitask" in one_line(err)


def test_a_task_that_the_base_has(dense_run, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"model.base={dense_run}", "task=depth"))
    assert code == 2
    assert f"task 'depth' is already in model.base='{dense_run}' (segmentation, depth)" in one_line(err)


def test_evaluating_a_task_that_the_base_lacks(dense_run, dense_words, polyscene, tmp_path):
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"model.base={dense_run}", "task=saliency", "iterations=0"))
    assert code == 2
    assert "task 'saliency' is not in this model, which has: segmentation, depth" in one_line(err)


def test_an_empty_folder_of_init_images(dense_words, polyscene, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"model.rcm.init_images={tmp_path / 'empty'}"))
    assert code == 2
    assert f"model.rcm.init_images: no images in '{tmp_path / 'empty'}'" in one_line(err)


def test_moments_of_other_weights(dense_run, dense_words, polyscene, tmp_path):
    moments = f"model.rcm.init_images={dense_run / 'moments.safetensors'}"
    code, _, err = polyscene(*dense_words(tmp_path / "run", moments, "seed=7"))
    assert code == 2
    assert "holds the response moments of other weights" in one_line(err)


def test_a_damaged_label_is_found_before_training(dense_copy, dense_words, polyscene, tmp_path):
    root = dense_copy()
    (root / "depth" / "00.npy").write_bytes(b"not an array")
    code, _, err = polyscene(*dense_words(tmp_path / "run", f"data.root={root}"))
    assert code == 2
    assert str(root / "depth" / "00.npy") in one_line(err)
    assert not (tmp_path / "run").exists()


def test_keys_of_the_config_can_be_printed(dense_words, polyscene, tmp_path):
    code, printed, _ = polyscene(*dense_words(tmp_path / "run", "--print-config"))
    assert code == 0
    assert "kind: rcm" in printed
    assert not (tmp_path / "run").exists()
