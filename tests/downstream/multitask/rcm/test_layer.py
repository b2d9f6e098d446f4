"""The reparameterized convolution against the product of its matrices."""

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.rcm.layer import ReparameterizedConvolution, modulator
from polyscene.downstream.multitask.rcm.per_task import TaskNorm


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def convolution():
    return nn.Conv2d(5, 8, 3, stride=2, padding=2, dilation=2, bias=False)


@pytest.mark.parametrize("normalized", [False, True])
def test_output_is_the_convolution_with_the_product(convolution, normalized):
    bank, matrix = random(6, 5, 3, 3), random(8, 6, seed=1)
    layer = ReparameterizedConvolution(bank, matrix, convolution, normalized=normalized)
    layer.add_task("edge")
    x = random(2, 5, 11, 13, seed=2)
    product = torch.einsum("or,rikl->oikl", matrix, bank)
    expected = nn.functional.conv2d(x, product, stride=2, padding=2, dilation=2)
    torch.testing.assert_close(layer(x, "edge"), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.merged("edge")[0].float(), product, rtol=1e-5, atol=1e-5)


def test_normalized_rows_are_direction_and_norm():
    matrix = random(8, 6)
    convolution = modulator(matrix, normalized=True)
    assert torch.equal(convolution.weight[:, :, 0, 0], matrix)
    parameters = convolution.parametrizations.weight
    torch.testing.assert_close(parameters.original0.flatten(), matrix.norm(dim=1))
    with torch.no_grad():
        parameters.original0.fill_(3.0)
        parameters.original1.mul_(7.0)
    torch.testing.assert_close(convolution.weight[:, :, 0, 0].norm(dim=1), torch.full((8,), 3.0))
    torch.testing.assert_close(convolution.weight[:, :, 0, 0], 3 * matrix / matrix.norm(dim=1, keepdim=True))


def test_a_row_of_zeros_stays_zero_and_can_be_trained():
    matrix = random(3, 4)
    matrix[1] = 0
    convolution = modulator(matrix, normalized=True)
    assert torch.equal(convolution.weight[:, :, 0, 0], matrix)
    convolution(random(1, 4, 2, 2, seed=1)).square().sum().backward()
    convolution.zero_grad()
    (convolution(random(1, 4, 2, 2, seed=1)).sum()).backward()
    for parameter in convolution.parameters():
        assert parameter.grad.isfinite().all()
    assert convolution.parametrizations.weight.original0.grad[1].abs() > 0


def test_only_the_task_in_use_gets_gradients(convolution):
    layer = ReparameterizedConvolution(random(8, 5, 3, 3), torch.eye(8), convolution, normalized=True)
    layer.add_task("edge")
    layer.add_task("depth")
    x = random(1, 5, 9, 9).requires_grad_()
    layer.requires_grad_(True)  # even so the bank must not be trained
    layer(x, "edge").square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in layer.tasks["edge"].parameters())
    assert all(parameter.grad is None for parameter in layer.tasks["depth"].parameters())
    assert layer.bank.grad is None
    assert all(parameter.grad is None for parameter in layer.initial.parameters())


def test_tasks_start_from_the_initial_part_or_from_another_task(convolution):
    layer = ReparameterizedConvolution(random(8, 5, 3, 3), random(8, 8), convolution, normalized=False)
    layer.add_task("edge")
    with torch.no_grad():
        layer.tasks["edge"].weight.add_(1)
    layer.add_task("depth")
    layer.add_task("normals", copy_from="edge")
    assert torch.equal(layer.tasks["depth"].weight, layer.initial.weight)
    assert torch.equal(layer.tasks["normals"].weight, layer.tasks["edge"].weight)
    with torch.no_grad():
        layer.tasks["normals"].weight.add_(1)
    assert not torch.equal(layer.tasks["normals"].weight, layer.tasks["edge"].weight)
    layer.remove_task("edge")
    assert list(layer.tasks) == ["depth", "normals"]


def test_norms_keep_statistics_apart():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.copy_(random(4))
    layer = TaskNorm(norm).train()
    layer.add_task("edge")
    layer.add_task("depth")
    layer(random(3, 4, 5, 5, seed=1) + 2, "edge")
    assert torch.equal(layer.tasks["depth"].running_mean, norm.running_mean)
    assert not torch.equal(layer.tasks["edge"].running_mean, norm.running_mean)
    assert torch.equal(layer.initial.running_mean, norm.running_mean)


@pytest.mark.parametrize("arguments", [{"groups": 2}, {"bias": True}])
def test_groups_and_biases_are_refused(arguments):
    convolution = nn.Conv2d(4, 4, 3, **{"bias": False, **arguments})
    with pytest.raises(ValueError, match="groups and bias"):
        ReparameterizedConvolution(convolution.weight, torch.eye(4), convolution, normalized=False)
