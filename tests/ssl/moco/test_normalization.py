"""BatchNorm groups, key permutation and synchronised statistics."""

import pytest
import torch
from torch import nn

from polyscene.runtime.errors import UserError
from polyscene.ssl.moco.normalization import (
    HostSyncBatchNorm2d,
    key_permutation,
    load_running_statistics,
    plan_normalization,
    running_statistics,
    synchronise,
)


@pytest.mark.parametrize(
    ("kind", "group", "batch", "processes", "expected"),
    [
        ("auto", 128, 256, 1, ("split", 128)),  # the paper's 2 x 128, on one process
        ("auto", 128, 128, 2, ("shuffle", 128)),  # the paper's 2 GPUs x 128
        ("auto", 128, 64, 1, ("split", 32)),
        ("auto", 128, 30, 1, ("split", 15)),
        ("auto", 128, 7, 1, ("split", 1)),
        ("auto", 32, 256, 4, ("shuffle", 32)),
        ("split", 8, 32, 1, ("split", 8)),
        ("shuffle", 16, 16, 2, ("shuffle", 16)),
        ("sync", 128, 24, 2, ("sync", 24)),
    ],
)
def test_plans(kind, group, batch, processes, expected):
    plan = plan_normalization(kind, group, batch, processes)
    assert (plan.kind, plan.group) == expected


@pytest.mark.parametrize(
    ("kind", "group", "batch", "processes", "message"),
    [
        ("split", 12, 32, 1, "group=12 does not divide the 32 images"),
        ("split", 32, 32, 1, "leaves one group for 32 images"),
        ("shuffle", 32, 32, 1, "leaves one group"),
        ("auto", 128, 1, 1, "1 image per process"),
    ],
)
def test_plans_that_leak_or_do_not_fit_are_refused(kind, group, batch, processes, message):
    with pytest.raises(UserError, match=message):
        plan_normalization(kind, group, batch, processes)


def test_key_permutation_is_a_function_of_seed_and_step():
    first = key_permutation(64, 3, 10)
    assert sorted(first.tolist()) == list(range(64))
    assert torch.equal(first, key_permutation(64, 3, 10))
    assert not torch.equal(first, key_permutation(64, 3, 11))
    assert not torch.equal(first, key_permutation(64, 4, 10))


def test_running_statistics_round_trip():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(2)))
    flat = torch.arange(12.0)
    load_running_statistics(module, flat)
    assert torch.equal(running_statistics(module), flat)
    assert module[1].running_var.tolist() == [4, 5, 6, 7]
    assert module[2][0].running_mean.tolist() == [8, 9]


def test_synchronise_keeps_parameters_and_keys():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    parameters = list(module.parameters())
    synchronise(module, torch.device("cpu"))
    assert isinstance(module[1][0], HostSyncBatchNorm2d)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert before.keys() == module.state_dict().keys()
    assert all(a is b for a, b in zip(parameters, module.parameters())), "an optimiser would lose them"
