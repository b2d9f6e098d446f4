"""Streamed moments against responses kept in memory."""

from dataclasses import replace

import pytest
import torch

from polyscene.downstream.multitask.rcm.moments import (
    Moments,
    moments_from_state,
    moments_to_state,
    response_moments,
)
from polyscene.downstream.multitask.rcm.pairs import convolution_pairs
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError


@torch.no_grad()
def responses(body, images, names):
    """Name -> (C, n) float64, all of them in memory."""
    kept = {}
    handles = [
        body.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output})
        )
        for name in names
    ]
    body.forward_features(images)
    for handle in handles:
        handle.remove()
    return {name: output.transpose(0, 1).flatten(1).double() for name, output in kept.items()}


def same(left, right, tolerance=1e-6):
    assert left.count == right.count
    for part in ("total", "products"):
        expected = getattr(right, part)
        difference = (getattr(left, part) - expected).abs().max()
        assert difference < tolerance * expected.abs().max(), part


# Basic blocks with the plain stem; bottlenecks with a deep stem and pooled shortcuts.
@pytest.mark.parametrize("arch", ["resnet18", "resnet14t"])
def test_moments_are_those_of_all_responses(plain, images, moments, arch):
    body = plain(arch)
    names = [pair.convolution for pair in convolution_pairs(body)]
    assert len(names) == {"resnet18": 20, "resnet14t": 19}[arch]
    if arch == "resnet14t":  # its last stage is 2048 wide
        names = [name for name in names if not name.startswith("layer4")]
    found = moments(arch, names)
    assert list(found) == names
    for name, values in responses(body, images, names).items():
        expected = Moments(torch.tensor(float(values.shape[1]), dtype=torch.float64), values.sum(1), values @ values.T)
        same(found[name], expected)
        torch.testing.assert_close(found[name].covariance, torch.cov(values, correction=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].mean, values.mean(1), rtol=1e-5, atol=1e-6)


def test_they_do_not_depend_on_batches_and_parts_can_be_merged(plain, images):
    # In double precision, since float32 convolutions of one and of three images differ by rounding.
    body, images = plain("resnet18").double(), images.double()
    once = response_moments(body, [images])
    first, second = response_moments(body, [images[:1]]), response_moments(body, images[1:].split(1))
    for name, expected in once.items():
        same(first[name].merge(second[name]), expected, 1e-12)


def test_ranks_are_summed(plain, images, moments):
    body = plain("resnet18")
    theirs = response_moments(body, [images[1:]], names=["layer2.0.conv1"])["layer2.0.conv1"]

    class Two(World):
        """This process has the first image; the other one's sums arrive with every reduction."""

        def mean(self, tensor):
            other = next(part for part in vars(theirs).values() if part.shape == tensor.shape)
            return (tensor + other) / 2

    world = Two(rank=0, size=2, device=torch.device("cpu"))
    found = response_moments(body, [images[:1]], names=["layer2.0.conv1"], world=world)
    same(found["layer2.0.conv1"], moments("resnet18")["layer2.0.conv1"], 1e-5)


def test_the_network_is_left_as_it_was(plain, images):
    body = plain("resnet18").train()
    before = {key: value.clone() for key, value in body.state_dict().items()}
    seen = []
    response_moments(body, [images[:1], images[1:]], names=["conv1"], progress=seen.append)
    assert seen == [1, 2]

    def broken():
        yield images
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        response_moments(body, broken())
    assert body.training
    assert all(not module._forward_hooks for module in body.modules())
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


def test_refusals(plain, images):
    body = plain("resnet18")
    with pytest.raises(UserError, match="no images"):
        response_moments(body, [])
    with pytest.raises(ValueError, match="no convolution"):
        response_moments(body, [images], names=["layer9"])
    bad = images.clone()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        response_moments(body, [bad])


def test_state_round_trip(moments):
    found = {name: each for name, each in moments("resnet18").items() if "layer1" in name}
    state = moments_to_state(found)
    again = moments_from_state(state)
    assert again.keys() == found.keys()
    for name in found:
        assert all(torch.equal(getattr(again[name], part), value) for part, value in vars(found[name]).items())
    state.pop("layer1.0.conv1.products")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1"):
        moments_from_state(state)
    wrong = replace(found["layer1.0.conv1"], products=torch.zeros(3, 3))
    with pytest.raises(UserError, match="incomplete"):
        moments_from_state(moments_to_state({"a": wrong}))
