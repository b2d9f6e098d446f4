"""Image-level tasks are balanced like any others."""

import pytest
import torch

from polyscene.downstream.multitask.balancing.gradients import gramian, shared_parameters
from polyscene.downstream.multitask.balancing.kpis import batch_kpis
from polyscene.downstream.multitask.models.base import Outputs
from polyscene.downstream.multitask.mti_net.backbones import random_backbone
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions, build_multi_scale_model
from polyscene.downstream.multitask.step import task_losses
from polyscene.downstream.multitask.tasks import Target, depth, image_class

SPECS = {"depth": depth.task(), "scene": image_class.task("scene", "Scene", ("room", "street", "field"), str)}


def test_the_indicator_is_the_share_of_right_images(alone):
    logits = torch.eye(3)[[0, 1, 2, 2]].view(4, 3, 1, 1)
    truth = Target(torch.tensor([0, 1, 0, 2]).view(4, 1, 1), torch.tensor([True, True, True, False]).view(4, 1, 1))
    found = batch_kpis(Outputs({"scene": logits}), {"scene": truth}, SPECS, ("scene",), alone)
    assert found.tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", ["multi_task", "pad_net", "mti_net"])
def test_its_gradient_reaches_what_the_tasks_share(alone, kind, layers):
    options = MultiScaleOptions(kind, pyramid_width=8, width=8)
    channels = {"depth": 1, "scene": 3}
    model = build_multi_scale_model(options, random_backbone("resnet10t", 0), channels, image_level=("scene",)).train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    targets = {
        "depth": Target(torch.ones(2, 1, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)),
        "scene": Target(torch.tensor([0, 2]).view(2, 1, 1), torch.ones(2, 1, 1, dtype=torch.bool)),
    }
    losses = task_losses(model(images), targets, SPECS)
    final, deep = losses["scene"]
    assert (len(final), len(deep)) == (1, 0)
    sums = [torch.stack([*losses[task][0], *losses[task][1]]).sum() for task in SPECS]
    found = gramian(sums, shared_parameters(model, layers), alone)
    assert (found.diagonal() > 0).all()


def test_losses_are_means_over_the_labelled_images():
    """Beside a dense task of another size; a batch without any label has a loss of 0 with a gradient."""
    logits = torch.randn(3, 3, 1, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    maps = {"depth": torch.ones(3, 1, 8, 8), "scene": logits}
    labels = torch.tensor([1, 0, 2]).view(3, 1, 1)
    for valid in ([True, False, True], [False] * 3):
        mask = torch.tensor(valid)
        targets = {
            "depth": Target(torch.full((3, 1, 16, 16), 3.0), torch.ones(3, 16, 16, dtype=torch.bool)),
            "scene": Target(labels, mask.view(3, 1, 1)),
        }
        losses = task_losses(Outputs(maps), targets, SPECS)
        assert losses["depth"][0][0].item() == 2
        scores = logits[mask][:, :, 0, 0].log_softmax(1).gather(1, labels[mask][:, :, 0])
        expected = -scores.mean() if mask.any() else torch.tensor(0.0)
        torch.testing.assert_close(losses["scene"][0][0], expected)
        (gradient,) = torch.autograd.grad(losses["scene"][0][0], logits)
        assert gradient[~mask].abs().sum() == 0
        assert bool(gradient.abs().sum() > 0) == bool(mask.any())
