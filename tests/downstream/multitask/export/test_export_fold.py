"""A folded task is a plain network, and the same function."""

import pytest
import torch
from torch import nn

from polyscene.downstream.multitask.export.fold import fold_model
from polyscene.downstream.multitask.models.build import KINDS
from polyscene.downstream.multitask.rcm.per_task import TaskModule
from polyscene.runtime.errors import UserError

CASES = {
    **{kind: {"kind": kind} for kind in KINDS},
    "aspp": {"kind": "rcm", "head": "aspp"},
    "aspp_shared": {"kind": "multi_task", "head": "aspp"},
    "stride_8": {"kind": "multi_task", "output_stride": 8},
    "all": {"kind": "rcm", "reparameterize": "all", "normalized": False},
    "rank": {"kind": "rcm", "rank": 0.75},
}


@pytest.mark.parametrize("case", list(CASES))
@torch.no_grad()
def test_folded_is_the_same_function(trained, images, case):
    model = trained(**CASES[case]).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images, ["normals"]).final["normals"]
    assert expected.std() > 0.05
    folded = fold_model(model, "normals")
    assert (folded(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    odd = images[:1, :, :37, :50]
    assert folded(odd).shape == (1, 3, 37, 50)
    assert not any(isinstance(module, (TaskModule, nn.BatchNorm2d)) for module in folded.modules())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert (fold_model(model, "edges")(images) - expected[:, :1]).abs().max() > 0.01
    state = model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_the_size_is_that_of_backbone_and_head(trained):
    """Whatever the kind, it folds to the same tensors: a bias a channel has taken the place of every BatchNorm."""
    shapes = [
        {key: tuple(value.shape) for key, value in fold_model(trained(kind).model, "edges").state_dict().items()}
        for kind in ("multi_task", "frozen", "rcm", "series_adapters")
    ]
    assert all(each == shapes[0] for each in shapes)
    backbone = trained("multi_task").model.encoder.body
    weights = sum(p.numel() for p in backbone.parameters() if p.dim() == 4)
    channels = sum(module.num_features for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    network = fold_model(trained("rcm").model, "edges")
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == weights + channels


def test_unknown_task(trained):
    with pytest.raises(UserError, match="'depth' is not in this model, which has: edges, normals"):
        fold_model(trained("frozen").model, "depth")
