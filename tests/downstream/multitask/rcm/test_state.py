"""Tasks of separate jobs on one bank come together in one state dict."""

import pytest
import torch

from polyscene.downstream.multitask.rcm.network import empty_rcm_encoder, rcm_encoder
from polyscene.downstream.multitask.rcm.state import load_tasks, merge_tasks, task_of, tasks_in
from polyscene.runtime.errors import UserError


@pytest.fixture
def trained(weights, perturb):
    """Task names -> an encoder whose tasks were changed as training would, always from the same bank."""

    def get(*tasks):
        encoder = rcm_encoder(weights("resnet10t"))
        for task in tasks:
            encoder.add_task(task)
            perturb(encoder, task, seed=len(task))
        return encoder

    return get


def test_keys_tell_their_task():
    assert task_of("body.layer1.0.conv1.tasks.edge.weight") == "edge"
    assert task_of("tasks.depth.classifier.bias") == "depth"
    assert task_of("body.conv1.tasks.edge.parametrizations.weight.original0") == "edge"
    assert task_of("body.layer1.0.conv1.bank") is None
    assert task_of("body.layer1.0.conv1.initial.weight") is None
    assert task_of("tasks.weight") is None


@torch.no_grad()
def test_merged_tasks_have_the_outputs_of_their_jobs(trained, images):
    first, second = trained("edge"), trained("depth", "normals")
    merged = merge_tasks({"a": first.state_dict(), "b": second.state_dict()})
    assert tasks_in(merged) == ["edge", "depth", "normals"]
    together = empty_rcm_encoder("resnet10t")
    load_tasks(together, merged)
    for job in (first, second):
        for task in job.tasks:
            for found, expected in zip(together(images, task), job(images, task)):
                assert torch.equal(found, expected)
    # A new task starts in the merged network as it would have in the first.
    together.add_task("parts")
    first.add_task("parts")
    assert all(torch.equal(a, b) for a, b in zip(together(images, "parts"), first(images, "parts")))


def test_the_same_task_twice_must_be_the_same(trained, perturb):
    base, extended = trained("edge"), trained("edge", "depth")
    merged = merge_tasks({"base": base.state_dict(), "more": extended.state_dict()})
    assert merged.keys() == extended.state_dict().keys()
    perturb(extended, "edge", seed=9)
    with pytest.raises(UserError, match="task 'edge' is in both 'base' and 'more'") as error:
        merge_tasks({"base": base.state_dict(), "more": extended.state_dict()})
    assert "\n" not in str(error.value)


def test_another_bank_is_refused(trained):
    first, second = trained("edge").state_dict(), trained("depth").state_dict()
    key = "body.layer2.0.conv1.bank"
    second[key] = second[key].clone()
    second[key][0, 0, 0, 0] += 1e-6
    with pytest.raises(UserError, match=rf"'b' does not have the filter bank of 'a' \(1 .*{key}") as error:
        merge_tasks({"a": first, "b": second})
    assert "\n" not in str(error.value)
    del second[key]
    with pytest.raises(UserError, match="1 shared tensors differ"):
        merge_tasks({"a": first, "b": second})
    with pytest.raises(ValueError, match="nothing"):
        merge_tasks({})


@torch.no_grad()
def test_reduced_ranks_are_loaded_into_an_empty_encoder(weights, moments, images):
    encoder = rcm_encoder(weights("resnet18"), moments("resnet18"), rank=0.5)
    encoder.add_task("edge")
    again = empty_rcm_encoder("resnet18", rank=0.5)
    load_tasks(again, encoder.state_dict())
    assert torch.equal(again(images, "edge")[-1], encoder(images, "edge")[-1])
    with pytest.raises(UserError, match="do not fit the model") as error:
        load_tasks(empty_rcm_encoder("resnet18"), encoder.state_dict())
    assert "\n" not in str(error.value)
