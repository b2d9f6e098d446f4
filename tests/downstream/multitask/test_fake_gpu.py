"""Training steps of every kind of model on a GPU that is not there: torch's fake tensors know their device.

They have shapes and no numbers, so that an operation on tensors of two devices fails, and so does whatever would make
the host wait for the device. Autocast does what it does on a GPU. Fakes have no backward pass there; it is left out.
"""

import pytest
import torch
from fake_gpu import GPU, NoCheck, Watch, keep_autocast_on
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from polyscene.downstream.multitask.balancing.build import BALANCERS, make_balancer
from polyscene.downstream.multitask.data.transforms import Batch
from polyscene.downstream.multitask.losses import depth_l1
from polyscene.downstream.multitask.models.build import KINDS, ModelOptions
from polyscene.downstream.multitask.models.families import make_empty_model
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import DenseStep
from polyscene.downstream.multitask.tasks import Target, depth, edges, image_class, normals, saliency, segmentation
from polyscene.runtime.distributed import World

HEIGHT, WIDTH = 64, 96
NARROW = {"pyramid_width": 8, "width": 8}
MODELS = {
    **{kind: ("resnet10t", ModelOptions(kind, head_width=8)) for kind in KINDS},
    "aspp": ("resnet10t", ModelOptions("multi_task", head="aspp", head_width=8, output_stride=8)),
    "fpn, single": ("resnet10t", MultiScaleOptions("single", **NARROW)),
    "fpn, semantic_fpn": ("resnet10t", MultiScaleOptions("multi_task", head="semantic_fpn", **NARROW)),
    "fpn, pad_net": ("resnet10t", MultiScaleOptions("pad_net", **NARROW)),
    "fpn, mti_net": ("resnet10t", MultiScaleOptions("mti_net", **NARROW)),
    "fpn, mti_net without fpm": ("resnet10t", MultiScaleOptions("mti_net", fpm=False, **NARROW)),
    "hrnet, mti_net": ("hrnet_w18_small", MultiScaleOptions("mti_net")),
}


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    """What fakes cannot do is left out, and autocast does not switch itself off."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, inputs, **_: [torch.zeros_like(part) for part in inputs])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    keep_autocast_on(monkeypatch)
    monkeypatch.setattr("polyscene.downstream.multitask.step.FiniteCheck", NoCheck)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # fakes cannot move into real parameters
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


def no_label(root, name):
    return None


def tasks_of(options):
    """Main tasks, one of the image level among them, and auxiliary ones where the model has such."""
    whole = image_class.task("scene", "Scene", ("room", "street"), no_label)
    found = (segmentation.task(20), edges.task(), saliency.task(), whole, normals.task(), depth.task())
    specs = {spec.name: spec for spec in found}
    extra = ("normals", "depth") if getattr(options, "interacts", False) else ()
    return specs, [name for name in specs if name not in extra], extra


def make_batch(specs):
    targets = {}
    for name, spec in specs.items():
        size = (2, 1, 1) if spec.image_level else (2, HEIGHT, WIDTH)
        classes = bool(spec.classes) or spec.name == "segmentation"
        values = torch.zeros(size, dtype=torch.int64) if classes else torch.rand(2, spec.channels, *size[1:])
        targets[name] = Target(values, torch.ones(size, dtype=torch.bool))
    return Batch(["a", "b"], torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8), targets)


def train(arch, options, strategy="fixed", precision="bf16", steps=1, change=None):
    """Train on the GPU; returns the losses of the last step and the types of all convolutions."""
    specs, main, extra = tasks_of(options)
    model = make_empty_model(
        options,
        arch,
        {name: specs[name].channels for name in main},
        auxiliary={name: specs[name].channels for name in extra},
        image_level=("scene",),
    )
    batch, balancer = make_batch(specs), make_balancer(strategy, tuple(specs))
    if change is not None:
        change(specs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to(GPU, memory_format=torch.channels_last)
        optimizer = make_optimizer(model, "sgd", learning_rate=0.1)
        world = World(rank=0, size=1, device=GPU)
        step = DenseStep(model, optimizer, specs, balancer.to(GPU), world, tasks=main, precision=precision)
        with Watch() as watch:
            for number in range(steps):
                losses = step.step(batch.to(GPU, non_blocking=True), step=number, learning_rate=0.1)
    return losses, {type_ for function, type_ in watch.types if function is torch.ops.aten.convolution.default}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_one_device(model):
    losses, types = train(*MODELS[model])
    assert {loss.device for loss in (losses.total, *losses.tasks.values())} == {GPU}
    assert losses.total.dtype == torch.float32
    assert types == {torch.bfloat16}


@pytest.mark.parametrize("strategy", BALANCERS)
def test_every_strategy_weighs_on_the_device(strategy):
    losses, types = train(*MODELS["multi_task"], strategy, precision="fp32", steps=2)
    assert {(weight.device, weight.dtype) for weight in losses.weights.values()} == {(GPU, torch.float32)}
    assert types == {torch.float32}


def other_device(output):
    return output + torch.ones(output.shape)


def number_read(output):
    return output * output.mean().item()


def number_asked(output):
    return output if output.mean() > 0 else -output


def some_selected(output):
    return output + output[output > 0].mean()


def waiting_copy(output):
    return output + torch.ones(output.shape).to(output.device)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (other_device, RuntimeError),
        (number_read, DataDependentOutputException),
        (number_asked, DataDependentOutputException),
        (some_selected, DynamicOutputShapeException),
        (waiting_copy, AssertionError),
    ],
)
def test_a_fault_would_be_noticed(fault, error):
    def change(specs):
        object.__setattr__(specs["depth"], "loss", lambda output, *target: depth_l1(fault(output), *target))

    with pytest.raises(error, match="device|aten|copy that waits"):
        train(*MODELS["multi_task"], change=change)
