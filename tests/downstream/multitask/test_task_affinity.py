"""When tasks call two pixels similar."""

import math
import pickle

import pytest
import torch

from polyscene.downstream.multitask.tasks import BUILT_IN, load_task
from polyscene.runtime.errors import UserError


def similar(task, first, second):
    """Of one-pixel cuts whose channels are given."""
    a, b = (torch.tensor(values).view(-1, 1, 1) for values in (first, second))
    return bool(load_task(task).affinity.similar(a, b))


def unit(degrees):
    return [math.sin(math.radians(degrees)), -math.cos(math.radians(degrees)), 0.0]


@pytest.mark.parametrize("task", ["segmentation", "parts"])
def test_classes_are_similar_when_equal(task):
    affinity = load_task(task).affinity
    found = affinity.similar(torch.tensor([[3, 3, 0]]), torch.tensor([[3, 4, 0]]))
    assert found.tolist() == [[True, False, True]]


def test_depth_is_compared_relative_to_the_distance():
    assert similar("depth", [1.0], [1.05])
    assert not similar("depth", [1.0], [1.2])
    assert similar("depth", [10.0], [10.5])
    assert similar("depth", [1.2], [1.0]) == similar("depth", [1.0], [1.2])


@pytest.mark.parametrize("task", ["edges", "saliency"])
def test_shares_are_similar_on_one_side_of_a_half(task):
    assert similar(task, [0.5], [1.0])
    assert similar(task, [0.0], [0.49])
    assert not similar(task, [0.49], [0.5])


def test_normals_are_compared_by_their_angle():
    assert similar("normals", unit(0), unit(22))
    assert not similar("normals", unit(0), unit(23))
    assert not similar("normals", unit(0), unit(180))
    # Small angles keep their digits: the arc cosine of a rounded product would say 0.
    tiny = load_task("normals").affinity.difference(
        torch.tensor(unit(0)).view(3, 1, 1), torch.tensor(unit(0.01)).view(3, 1, 1)
    )
    assert float(tiny) == pytest.approx(0.01, rel=1e-3)


def test_thresholds_can_be_chosen_where_there_are_any():
    strict = load_task("depth").affinity.with_threshold(0.01, "depth")
    assert not bool(strict.similar(torch.ones(1, 1, 1), torch.full((1, 1, 1), 1.05)))
    with pytest.raises(UserError, match=r"thresholds\.segmentation: .*the same class"):
        load_task("segmentation").affinity.with_threshold(0.5, "segmentation")
    with pytest.raises(UserError, match=r"thresholds\.depth=0"):
        load_task("depth").affinity.with_threshold(0, "depth")


@pytest.mark.parametrize("task", BUILT_IN)
def test_every_built_in_task_has_an_affinity_that_processes_can_send(task):
    spec = load_task(task)
    assert pickle.loads(pickle.dumps(spec)).affinity == spec.affinity
    assert spec.affinity.rule
