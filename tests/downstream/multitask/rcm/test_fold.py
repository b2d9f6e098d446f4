"""A folded network is plain, and is the same function."""

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.rcm.adapters import (
    parallel_adapter_encoder,
    series_adapter_encoder,
    task_specific_encoder,
)
from polyscene.downstream.multitask.rcm.fold import fold_task
from polyscene.downstream.multitask.rcm.network import rcm_encoder
from polyscene.downstream.multitask.rcm.per_task import TaskModule
from polyscene.runtime.errors import UserError

BUILDERS = {
    "rc": lambda weights, moments: rcm_encoder(weights, normalized=False),
    "rcm": lambda weights, moments: rcm_encoder(weights, moments),
    "rank": lambda weights, moments: rcm_encoder(weights, moments, rank=0.75),
    "all": lambda weights, moments: rcm_encoder(weights, moments, reparameterize="all"),
    "series": lambda weights, moments: series_adapter_encoder(weights),
    "parallel": lambda weights, moments: parallel_adapter_encoder(weights),
    "parallel_all": lambda weights, moments: parallel_adapter_encoder(weights, reparameterize="all"),
    "norms": lambda weights, moments: task_specific_encoder(weights, convolutions="none", norms=True),
    "convolutions": lambda weights, moments: task_specific_encoder(weights, convolutions="all", norms=False),
}


@pytest.mark.parametrize("kind", list(BUILDERS))
@torch.no_grad()
def test_folded_is_the_same_function(weights, moments, images, perturb, kind):
    encoder = BUILDERS[kind](weights("resnet10t"), moments("resnet10t"))
    encoder.add_task("edge")
    encoder.add_task("depth")
    perturb(encoder, "edge")
    expected = encoder(images, "edge")
    folded = fold_task(encoder, "edge")
    for found, wanted in zip(folded(images), expected):
        # Relative to the largest feature: float32 itself rounds features of 50 to 4e-6.
        assert (found - wanted).abs().max() < 1e-5 * max(1, float(wanted.abs().max()))
    assert (encoder(images, "depth")[-1] - expected[-1]).abs().max() > 0.01
    assert (folded.channels, folded.strides, folded.layers) == (encoder.channels, encoder.strides, encoder.layers)
    assert not any(isinstance(module, (TaskModule, nn.BatchNorm2d)) for module in folded.modules())
    assert all(torch.equal(a, b) for a, b in zip(encoder(images, "edge"), expected))


@torch.no_grad()
def test_bottlenecks(weights, images, perturb):
    """No more parameters than the plain network, plus a bias a channel."""
    encoder = rcm_encoder(weights("resnet14t"))
    encoder.add_task("edge")
    perturb(encoder, "edge")
    folded = fold_task(encoder, "edge")
    for found, wanted in zip(folded(images), encoder(images, "edge")):
        assert (found - wanted).abs().max() < 1e-5 * max(1, float(wanted.abs().max()))
    convolutions = sum(value.numel() for value in weights("resnet14t").state.values() if value.ndim == 4)
    channels = sum(value.numel() for key, value in weights("resnet14t").state.items() if key.endswith("running_mean"))
    assert sum(parameter.numel() for parameter in folded.parameters()) == convolutions + channels


def test_unknown_task(weights):
    with pytest.raises(UserError, match="'edge' is not in this model, which has: none"):
        fold_task(rcm_encoder(weights("resnet10t")), "edge")
