"""BatchNorm statistics: read, written, averaged, synchronised."""

import sys

import pytest
import torch
from torch import nn

from polyscene.runtime.batch_norm import (
    HostSyncBatchNorm2d,
    averaged_statistics,
    load_running_statistics,
    running_statistics,
    synchronise,
)
from polyscene.runtime.distributed import World


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


def test_synchronise_leaves_frozen_statistics_frozen():
    module = nn.Sequential(nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4))
    synchronise(module, torch.device("cpu"))
    assert [norm.training for norm in module] == [False, True]


class Alike(World):
    """Processes with the statistics that the test says they have."""

    def mean(self, tensor):
        return torch.stack([tensor + shift for shift in SHIFTS]).sum(dim=0) / len(SHIFTS)


SHIFTS = [0.0]


@pytest.mark.parametrize(("shifts", "expected"), [([0.0] * 7, 0.0), ([0.0, 1.0, 5.0], 2.0)])
def test_averaged_statistics_are_put_back_and_equal_ones_keep_their_bits(monkeypatch, shifts, expected):
    monkeypatch.setattr(sys.modules[__name__], "SHIFTS", shifts)
    module = nn.BatchNorm2d(50)
    own = torch.rand(100, generator=torch.Generator().manual_seed(0))
    load_running_statistics(module, own)
    with averaged_statistics(module, Alike(rank=0, size=len(shifts), device=torch.device("cpu"))):
        inside = running_statistics(module)
    if expected:
        torch.testing.assert_close(inside, own + expected)
    else:
        assert torch.equal(inside, own)
    assert torch.equal(running_statistics(module), own)


def test_no_batch_norm_no_statistics():
    module = nn.Conv2d(3, 4, 3)
    assert running_statistics(module).shape == (0,)
    load_running_statistics(module, torch.zeros(0))
