"""Key performance indicators of batches, counted by hand."""

import dataclasses
import math

import pytest
import torch

from polyscene.downstream.multitask.balancing.kpis import batch_kpis, check_kpis
from polyscene.downstream.multitask.models.base import Outputs
from polyscene.downstream.multitask.tasks import Target
from polyscene.downstream.multitask.tasks import depth as depth_task
from polyscene.downstream.multitask.tasks import edges as edges_task
from polyscene.downstream.multitask.tasks import normals as normals_task
from polyscene.downstream.multitask.tasks import segmentation as segmentation_task
from polyscene.runtime.errors import UserError

SPECS = {
    "segmentation": segmentation_task.task(3),
    "depth": depth_task.task(),
    "normals": normals_task.task(),
    "edges": edges_task.task(),
}


def batch():
    """One image of 1 x 4 pixels; the last pixel is not valid."""
    valid = torch.tensor([[[True, True, True, False]]])
    classes = torch.tensor([[[0, 1, 2, 0]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 2]]]), 3).permute(0, 3, 1, 2).float()
    metres = torch.tensor([[[[1.0, 2.0, 4.0, 1.0]]]])
    guessed = torch.tensor([[[[1.2, 1.5, 4.9, 1.0]]]])  # ratios 1.2, 1.33, 1.225
    up = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    angles = torch.tensor([29.0, 31.0, 90.0, 0.0]) * math.pi / 180
    turned = 5 * torch.stack([angles.sin(), torch.zeros(4), angles.cos()]).view(1, 3, 1, 4)
    true_edges = torch.tensor([[[[1.0, 0.0, 1.0, 1.0]]]])
    edge_logits = torch.tensor([[[[3.0, 2.0, -1.0, 4.0]]]])  # one hit, one false, one missed
    targets = {
        "segmentation": Target(classes, valid),
        "depth": Target(metres, valid),
        "normals": Target(up, valid),
        "edges": Target(true_edges, valid),
    }
    return {"segmentation": logits, "depth": guessed, "normals": turned, "edges": edge_logits}, targets


def test_by_hand(alone):
    maps, targets = batch()
    found = batch_kpis(Outputs(maps), targets, SPECS, tuple(SPECS), alone)
    assert found.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 2])


def test_auxiliary_tasks_are_judged_by_their_finest_output(alone):
    maps, targets = batch()
    edges = maps.pop("edges")
    finer = torch.nn.functional.interpolate(edges, scale_factor=2, mode="nearest")
    outputs = Outputs(maps, ({"edges": -edges}, {"edges": finer}))
    found = batch_kpis(outputs, targets, SPECS, ("edges", "depth"), alone)
    assert found.tolist() == pytest.approx([1 / 2, 2 / 3])


def test_processes_count_together(on_ranks):
    maps, targets = batch()

    def run(world):
        mine = dict(targets)
        if world.rank:  # this process has nothing to judge, and no process has any normals
            mine = {name: Target(target.values, torch.zeros_like(target.valid)) for name, target in mine.items()}
        mine["normals"] = Target(targets["normals"].values, torch.zeros_like(targets["normals"].valid))
        return batch_kpis(Outputs(maps), mine, SPECS, ("segmentation", "edges", "normals"), world)

    for found in on_ranks(run):
        assert found[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
        assert found[2].isnan()


def test_a_task_without_a_unit_is_refused():
    check_kpis(SPECS)
    with pytest.raises(UserError, match="task 'depth' has no unit"):
        check_kpis({"depth": dataclasses.replace(SPECS["depth"], unit="")})
