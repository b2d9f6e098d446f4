"""Before training, every ablation that promises it has the features of the pretrained network; reduced ranks do not."""

import pytest
import torch

from polyscene.downstream.backbones import LAYERS
from polyscene.downstream.multitask.rcm import network
from polyscene.downstream.multitask.rcm.network import adapted_convolutions, rcm_encoder
from polyscene.downstream.multitask.rcm.response_init import response_basis

# 2048 channels take many seconds to diagonalise; benchmarks/response_init.py measures the whole resnet50.
DEPTH = {("resnet18", "spatial"): 4, ("resnet18", "all"): 4, ("resnet50", "spatial"): 4, ("resnet50", "all"): 3}
CASES = list(DEPTH)


@pytest.fixture(scope="module")
def basis():
    """Eigen-decompositions, each done once: the networks below share their moments."""
    made = {}

    def get(moments):
        if id(moments) not in made:
            made[id(moments)] = (moments, response_basis(moments))
        return made[id(moments)][1]

    return get


@pytest.fixture
def encoder(weights, plain, moments, basis, monkeypatch):
    """``encoder(arch, reparameterize, initialised, normalized, rank)`` with a task "edge"."""
    monkeypatch.setattr(network, "response_basis", basis)

    def make(arch, reparameterize, initialised, normalized, rank=None):
        layers = LAYERS[: DEPTH[arch, reparameterize]]
        names = [
            name
            for name in adapted_convolutions(plain(arch), reparameterize)
            if name.split(".")[0] in ("conv1", *layers)
        ]
        made = rcm_encoder(
            weights(arch),
            moments(arch, names) if initialised else None,
            layers=layers,
            reparameterize=reparameterize,
            normalized=normalized,
            rank=rank,
        )
        made.add_task("edge")
        return made

    return make


def relative(found, expected):
    """Largest difference of two lists of maps, each relative to the largest value of the expected one."""
    assert [a.shape for a in found] == [b.shape for b in expected]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected))


@pytest.mark.parametrize(("arch", "reparameterize"), CASES)
@pytest.mark.parametrize(
    ("initialised", "normalized"), [(False, False), (False, True), (True, False), (True, True)], ids=lambda each: each
)
@torch.no_grad()
def test_features_are_those_of_the_pretrained_network(
    encoder, pretrained_maps, images, arch, reparameterize, initialised, normalized
):
    made = encoder(arch, reparameterize, initialised, normalized)
    expected = pretrained_maps(arch, made.layers)
    assert relative(made(images[:2], "edge"), expected) < 1e-4
    # The test sees an error of the size that would matter.
    norm = made.body.get_submodule(made.pairs[0].norm).tasks["edge"]
    norm.running_mean += 0.01 * norm.running_var.sqrt()
    assert relative(made(images[:2], "edge"), expected) > 1e-4


@pytest.mark.parametrize(("arch", "reparameterize"), CASES)
@torch.no_grad()
def test_at_rank_24_of_32_the_restored_mean_is_nearer(
    encoder, pretrained_maps, moments, basis, images, arch, reparameterize
):
    """Each layer's lost mean restored, against the same network without that correction."""
    made = encoder(arch, reparameterize, True, True, rank=24 / 32)
    expected = pretrained_maps(arch, made.layers)[-1]
    banks = [pair for pair in made.pairs if hasattr(made.body.get_submodule(pair.convolution), "bank")]
    assert {made.body.get_submodule(pair.convolution).bank.shape[0] % 48 for pair in banks} == {0}

    def error():
        return float((made(images[:2], "edge")[-1] - expected).square().mean())

    corrected = error()
    found = moments(arch, [pair.convolution for pair in banks])
    for pair in banks:
        rank = made.body.get_submodule(pair.convolution).bank.shape[0]
        made.body.get_submodule(pair.norm).tasks["edge"].running_mean += basis(found[pair.convolution]).lost_mean(rank)
    assert 0 < corrected < error()
