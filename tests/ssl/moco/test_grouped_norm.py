"""Groups that go through an encoder together, against groups that go one after another."""

import copy

import pytest
import torch
from tiny import make_model
from torch import nn

from polyscene.ssl.moco.grouped_norm import GroupedBatchNorm2d, group_norms, joined_groups, knows_groups
from polyscene.ssl.moco.model import embed_in_groups


def views(batch=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, 1, 3, 16, 16, generator=generator, dtype=dtype),
        torch.randn(batch, 3, 3, 8, 8, generator=generator, dtype=dtype) + 1,
    ]


def encoders():
    apart = make_model().query.double()
    together = copy.deepcopy(apart)
    group_norms(together)
    return apart, together


@pytest.mark.parametrize("group", [2, 4, 8])
def test_results_gradients_and_statistics_are_those_of_separate_passes(group):
    apart, together = encoders()
    assert not knows_groups(apart)
    assert knows_groups(together)
    for _ in range(2):  # the second starts from moved statistics
        outputs = [embed_in_groups(encoder, views(), group) for encoder in (apart, together)]
        for features, embeddings in outputs:
            (features.square().sum(dim=-1) * torch.arange(4) + embeddings[..., 0]).sum().backward()
        for ours, theirs in zip(outputs[1], outputs[0]):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for (name, ours), theirs in zip(together.state_dict().items(), apart.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)
    for ours, theirs in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_one_pass_for_all_groups():
    _, together = encoders()
    passes = []
    together.backbone.body[0].register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    embed_in_groups(together, views(), 2)
    assert passes == [8, 24]


def test_outside_it_is_torchs_batchnorm():
    plain = nn.BatchNorm2d(5)
    grouped = copy.deepcopy(plain)
    group_norms(grouped)
    x = torch.randn(6, 5, 3, 3)
    with joined_groups(grouped, 3):
        grouped(x + 1)
    plain.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped(x), plain(x))
    assert torch.equal(grouped.running_var, plain.running_var)
    plain.eval(), grouped.eval()
    with joined_groups(grouped, 3):
        assert torch.equal(grouped(x), plain(x))
    assert int(grouped.num_batches_tracked) == 4


def test_a_failed_pass_leaves_nothing_behind():
    _, together = encoders()
    before = copy.deepcopy(together.state_dict())
    together.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), joined_groups(together, 2):
        together(views()[0].flatten(0, 1))
    assert all(torch.equal(value, before[name]) for name, value in together.state_dict().items())
    norm = together.backbone.norm
    assert (norm.groups, norm.seen) == (1, ())


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)])
def test_layers_with_other_statistics_are_left_alone(layer):
    module = nn.Sequential(nn.BatchNorm2d(3), layer)
    group_norms(module)
    assert isinstance(module[0], GroupedBatchNorm2d)
    assert type(layer) is nn.BatchNorm2d
    assert not knows_groups(module)


def test_a_module_without_batchnorm_knows_no_groups():
    assert not knows_groups(nn.Linear(3, 3))
