"""BatchNorm groups and key permutation."""

import pytest
import torch

from polyscene.runtime.errors import UserError
from polyscene.ssl.moco.normalization import key_permutation, plan_normalization


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
