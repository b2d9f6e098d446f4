"""What is computed in another order in training is what the plain modules compute: values, gradients, statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyscene.downstream.multitask.mti_net.aggregation import AggregationHead, ScaleFusion
from polyscene.downstream.multitask.mti_net.blocks import initialise_by_name
from polyscene.downstream.multitask.mti_net.distillation import Distillation
from polyscene.downstream.multitask.mti_net.fpm import FeaturePropagation
from polyscene.runtime.batch_norm import synchronise

TASKS = ("a", "b", "c")
WIDTHS = (4, 6, 10)


def module(part):
    """In double precision, where other orders differ by rounding alone; training mode."""
    initialise_by_name(part, "part", 0)
    return part.double().train()


def maps(seed=0, batch=2, layout=torch.channels_last):
    """The second and third are not exactly a half and a quarter of the first, as in images that 32 does not divide."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((13, 19), (7, 10), (4, 5))
    found = (torch.randn(batch, c, *s, generator=generator, dtype=torch.float64) for c, s in zip(WIDTHS, sizes))
    return [x.contiguous(memory_format=layout).requires_grad_() for x in found]


def joined(fusion, inputs):
    size = inputs[0].shape[-2:]
    up = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in inputs]
    return fusion.join.norm(F.conv2d(torch.cat(up, dim=1), fusion.join.convolution.weight)).relu()


def same(ours, plain, own_inputs, plain_inputs, own, other):
    """Compare outputs, their gradients for the same random direction, and the buffers of both modules."""
    assert torch.allclose(ours, plain, atol=1e-12)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5), dtype=ours.dtype)
    found = torch.autograd.grad(ours, [*own_inputs, *own.parameters()], direction)
    expected = torch.autograd.grad(plain, [*plain_inputs, *other.parameters()], direction)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
        assert b.abs().max() > 1e-6
    for (key, a), (_, b) in zip(own.named_buffers(), other.named_buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-12), key


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_scales_are_fused_as_if_side_by_side(layout):
    ours = module(ScaleFusion(WIDTHS)).to(memory_format=layout)
    plain, first, second = copy.deepcopy(ours), maps(layout=layout), maps(layout=layout)
    result = ours(first)
    same(result, joined(plain, second), first, second, ours, plain)
    assert result.is_contiguous(memory_format=layout)
    assert ours.join.norm.num_batches_tracked == 1
    assert ours.join.norm.running_mean.abs().max() > 0.001


@torch.no_grad()
def test_training_and_evaluation_fuse_the_same():
    fusion, inputs = module(ScaleFusion(WIDTHS)), maps()
    fusion.join.norm.momentum = 1.0
    trained = fusion(inputs)
    fusion.join.norm.running_var.mul_(1 - 1 / (2 * 13 * 19))  # which is kept without bias
    assert torch.allclose(fusion.eval()(inputs), trained, atol=1e-12)


def test_one_scale_and_many_tasks():
    ours, plain = (module(AggregationHead((6,), 3)) for _ in range(2))
    first, second = maps()[1:2], maps()[1:2]
    expected = plain.prediction(joined(plain.fuse, second))
    expected = F.interpolate(expected.float(), size=(20, 30), mode="bilinear", align_corners=False)
    assert torch.allclose(ours(first, (20, 30)), expected, atol=1e-6)


def test_the_fusion_has_the_parameters_and_values_it_always_had():
    part = ScaleFusion(WIDTHS)
    assert {key: tuple(value.shape) for key, value in part.state_dict().items()} == {
        "join.convolution.weight": (20, 20, 1, 1),
        **{f"join.norm.{key}": (20,) for key in ("weight", "bias", "running_mean", "running_var")},
        "join.norm.num_batches_tracked": (),
    }


def test_batch_norms_that_are_replaced_are_used():
    ours = module(ScaleFusion(WIDTHS))
    plain, first, second = copy.deepcopy(ours), maps(), maps()
    # Without other processes it is BatchNorm.
    same(synchronise(ours, torch.device("cpu"))(first), joined(plain, second), first, second, ours, plain)

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    replaced = Doubled(20).double()
    ours.join.norm, plain.join.norm = replaced, copy.deepcopy(replaced)
    same(ours(first), joined(plain, second), first, second, ours, plain)


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        task: torch.randn(2, 8, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True) for task in TASKS
    }


@pytest.mark.parametrize("transform", [True, False])
def test_distillation_is_the_same_with_its_modules_one_by_one(transform):
    ours = module(Distillation(("a", "c"), TASKS, 8, transform))
    plain, first, second = copy.deepcopy(ours), features(), features()
    results, expected = [], []
    for task in ("a", "c"):
        results.append(ours(first, task))
        total = second[task]
        for other, attention in plain.tasks[task].items():
            total = total + attention.mask(second[other]).sigmoid() * attention.transform(second[other])
        expected.append(total)
    same(torch.cat(results), torch.cat(expected), first.values(), second.values(), ours, plain)


def test_what_a_task_alone_uses_gets_no_gradient_from_the_others():
    part, inputs = module(Distillation(("a", "c"), TASKS, 8)), features()
    results = {task: part(inputs, task) for task in ("a", "c")}
    results["a"].sum().backward()
    assert all(parameter.grad is None for parameter in part.tasks["c"].parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in part.tasks["a"].parameters())


def test_gates_of_the_propagation_are_squeeze_and_excitation():
    ours = module(FeaturePropagation(TASKS, 8))
    for gate in ours.gates.values():
        nn.init.constant_(gate.fc1.bias, 1.0)  # the one hidden unit of so small a gate is on
    plain, first, second = copy.deepcopy(ours), features(), features()
    results = torch.cat(list(ours(first).values()), dim=1)
    together = torch.cat(list(second.values()), dim=1)
    shared = plain.reduce(together * plain.mask(together))
    expected = torch.cat([second[task] + gate(shared) for task, gate in plain.gates.items()], dim=1)
    same(results, expected, first.values(), second.values(), ours, plain)


@pytest.mark.parametrize("part", [ScaleFusion(WIDTHS), Distillation(("a",), TASKS, 8), FeaturePropagation(TASKS, 8)])
def test_reduced_precision_in_training(part):
    """Under autocast results are bfloat16 and near those of single precision; all gradients are finite."""
    initialise_by_name(part, "part", 0)
    part.train()

    def run(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            if isinstance(part, ScaleFusion):
                return part([x.detach().float() for x in maps()])
            given = {task: x.detach().float() for task, x in features().items()}
            return part(given, "a") if isinstance(part, Distillation) else torch.cat(list(part(given).values()), dim=1)

    exact, rough = run(False), run(True)
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02
    rough.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in part.parameters())
