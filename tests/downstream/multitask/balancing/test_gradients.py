"""Gramians of tasks' gradients, and which parameters are shared."""

import pytest
import timm
import torch
from torch import nn

from polyscene.downstream.backbones import LAYERS, FeatureMaps
from polyscene.downstream.multitask.balancing.gradients import gramian, shared_parameters
from polyscene.downstream.multitask.heads.build import TaskHeads
from polyscene.downstream.multitask.models.shared import SharedEncoderModel
from polyscene.runtime.errors import UserError


def test_products_of_gradients(alone):
    torch.manual_seed(0)
    shared, other = nn.Linear(3, 4), nn.Linear(4, 4)
    hidden = shared(torch.randn(5, 3))
    losses = [hidden.square().mean(), other(hidden).abs().mean(), (other.weight**2).sum()]
    wanted = []
    for loss in losses[:2]:
        shared.zero_grad()
        loss.backward(retain_graph=True)
        wanted.append(torch.cat([shared.weight.grad.flatten(), shared.bias.grad]))
    wanted.append(torch.zeros(16))  # does not depend on the shared layer
    shared.zero_grad()
    other.zero_grad()
    found = gramian(losses, list(shared.parameters()), alone)
    wanted = torch.stack(wanted).double()
    torch.testing.assert_close(found, wanted @ wanted.T)
    assert all(parameter.grad is None for parameter in [*shared.parameters(), *other.parameters()])
    sum(losses).backward()  # the graph is still there


def test_processes_average_gradients_not_products(on_ranks):
    """Two processes whose gradients cancel: the global gradient is zero."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)

    def run(world):
        sign = 1 - 2 * world.rank
        return gramian([sign * weight.sum(), (weight * torch.tensor([1.0, 1.0 + world.rank])).sum()], [weight], world)

    for found in on_ranks(run):
        torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.0, 1 + 1.5**2]], dtype=torch.float64))


def make_model():
    body = timm.create_model("resnet10t", num_classes=0)
    encoder = FeatureMaps(body, LAYERS[-1:], (32,))
    heads = TaskHeads("aspp", encoder.channels, encoder.strides, 8)
    return SharedEncoderModel(encoder, heads, {"depth": 1, "normals": 3})


class Pyramid(nn.Module):
    """Names of an FPN: a body, and filters for every scale after it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.outputs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))


def names(model, parameters):
    return [name for name, value in model.named_parameters() if any(value is other for other in parameters)]


def test_shared_layers():
    model = make_model()
    block = "encoder.body.layer4.0."
    last = [f"{block}{name}.weight" for name in ("conv1", "conv2", "downsample.1")]
    assert names(model, shared_parameters(model)) == last
    everything = names(model, shared_parameters(model, "all"))
    assert everything == [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    model.get_submodule(f"{block}conv2").requires_grad_(False)
    assert names(model, shared_parameters(model)) == [last[0], last[2]]
    with pytest.raises(ValueError, match="first"):
        shared_parameters(model, "first")
    model.encoder.requires_grad_(False)
    with pytest.raises(UserError, match="share no trained layer"):
        shared_parameters(model)


def test_all_scales_of_a_pyramid_are_the_last_layer():
    model = make_model()
    model.encoder = Pyramid()
    wanted = [f"encoder.outputs.{scale}.weight" for scale in range(3)]
    assert names(model, shared_parameters(model)) == wanted


def test_the_last_block_of_a_longer_chain():
    model = make_model()
    model.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 3)))
    assert names(model, shared_parameters(model)) == ["encoder.1.1.weight"]
