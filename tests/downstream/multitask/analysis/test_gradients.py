"""Gradients of tasks whose similarity is known by construction."""

import pytest
import torch

from polyscene.downstream.multitask.analysis.gradients import DEPTHS, encoder_parameters, gradient_similarity
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.features import normalise

CPU = torch.device("cpu")


def test_same_opposite_and_other_tasks(model, batches, tasks):
    names = ("depth", "twin", "opposite", "other")
    shared = model("multi_task", *names)
    found = gradient_similarity(
        shared, batches(names, same=("depth", "twin", "opposite")), tasks(*names), device=CPU, values=20_000
    )
    assert (found.tasks, found.depths, found.of, found.batches) == (names, DEPTHS, "shared", 6)
    assert found.rsa.shape == found.cosine.shape == (5, 4, 4)
    for matrices in (found.rsa, found.cosine):
        torch.testing.assert_close(matrices, matrices.transpose(1, 2))
        torch.testing.assert_close(matrices.diagonal(dim1=1, dim2=2), torch.ones(5, 4, dtype=torch.float64))
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(found.rsa[:, 0, 1], one)
    torch.testing.assert_close(found.cosine[:, 0, 1], one)
    # The opposite gradient finds the same minibatches alike, and undoes every step.
    torch.testing.assert_close(found.rsa[:, 0, 2], one)
    torch.testing.assert_close(found.cosine[:, 0, 2], -one)
    assert (found.cosine[:, 0, 3] < 0.99).all()


def test_gradients_are_those_of_backward(model, batches, tasks, monkeypatch):
    """The vectors that are compared are what training would add up, minibatch by minibatch."""
    from polyscene.downstream.multitask.analysis import gradients as module

    kept = []
    monkeypatch.setattr(module, "dissimilarities", lambda vectors: kept.append(vectors) or torch.eye(len(vectors)))
    monkeypatch.setattr(module, "similarity", lambda matrices: torch.eye(len(matrices)))
    names = ("depth", "other")
    shared, made, specs = model("multi_task", *names), batches(names, count=3), tasks(*names)
    gradient_similarity(shared, made, specs, device=CPU, values=None)
    for k, batch in enumerate(made):
        shared.zero_grad()
        output = shared(normalise(batch.images)).final["other"]
        specs["other"].loss(output, *batch.targets["other"]).backward()
        parameters = encoder_parameters(shared, "other")["layer3"]
        expected = torch.cat([parameter.grad.flatten() for parameter in parameters])
        # Depth by depth, task by task: layer3 is the fourth depth, "other" the second task.
        torch.testing.assert_close(kept[3 * 2 + 1][k], expected, rtol=1e-3, atol=1e-6)


def test_chunks_and_a_draw_of_entries(model, batches, tasks):
    names = ("depth", "other")
    shared, made, specs = model("multi_task", *names), batches(names, count=3), tasks(*names)
    whole = gradient_similarity(shared, made, specs, device=CPU, values=None)
    parts = gradient_similarity(shared, made, specs, device=CPU, values=None, chunk=1)
    torch.testing.assert_close(parts.cosine, whole.cosine, rtol=1e-3, atol=1e-4)
    drawn = gradient_similarity(shared, made, specs, device=CPU, values=20_000)
    again = gradient_similarity(shared, made, specs, device=CPU, values=20_000)
    assert torch.equal(drawn.rsa, again.rsa)
    assert 0 < (drawn.cosine - whole.cosine).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["rcm", "task_norms", "single"])
def test_own_parameters_where_nothing_is_shared(model, batches, tasks, kind):
    names = ("depth", "twin", "other")
    own = model(kind, *names)
    found = gradient_similarity(own, batches(names, same=("depth", "twin")), tasks(*names), device=CPU, values=9_000)
    assert found.of == "own"
    assert found.cosine is None
    torch.testing.assert_close(found.rsa[:, 0, 1], torch.ones(5, dtype=torch.float64))
    for depth, parameters in encoder_parameters(own, "twin").items():
        names_there = {name for name, p in own.named_parameters() if any(p is each for each in parameters)}
        assert all("tasks.twin." in name for name in names_there), depth


def test_the_model_stays_as_it_is(model, batches, tasks):
    names = ("depth", "other")
    own = model("rcm", *names).train()
    own.train_only(["depth"])
    before = {key: value.clone() for key, value in own.state_dict().items()}
    asked = [parameter.requires_grad for parameter in own.parameters()]
    gradient_similarity(own, batches(names, count=3), tasks(*names), device=CPU)
    assert own.training
    assert [parameter.requires_grad for parameter in own.parameters()] == asked
    assert all(parameter.grad is None for parameter in own.parameters())
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())


def test_refusals(model, batches, tasks):
    names = ("depth", "other")
    shared, made, specs = model("multi_task", *names), batches(names, count=3), tasks(*names)
    with pytest.raises(UserError, match="1 task cannot be compared"):
        gradient_similarity(shared, made, tasks("depth"), device=CPU)
    with pytest.raises(UserError, match="2 minibatches are too few"):
        gradient_similarity(shared, made[:2], specs, device=CPU)
    with pytest.raises(UserError, match="0 minibatches are too few"):
        gradient_similarity(shared, [], specs, device=CPU)
    with pytest.raises(UserError, match="trains nothing"):
        gradient_similarity(model("frozen", *names), made, specs, device=CPU)
    made[1].targets["other"].values[0, 0, 0, 0] = torch.inf
    with pytest.raises(RunFailed, match="'other' is not finite"):
        gradient_similarity(shared, made, specs, device=CPU)
    assert not shared.training
