"""Tasks that are added, removed and merged at the level of whole models."""

import dataclasses

import pytest
import torch

from polyscene.downstream.multitask.models.build import ModelOptions
from polyscene.downstream.multitask.models.incremental import add_tasks, merge_models, remove_task
from polyscene.downstream.multitask.models.model_file import SavedModel
from polyscene.runtime.errors import UserError


@pytest.fixture
def trained(make, record, disturb):
    """Kind and channels of tasks -> a model from one initial model, changed as by training."""

    def get(kind="rcm", metadata=None, **channels):
        model = make(kind, channels)
        for task in channels:
            disturb(model, task, seed=len(task))
        options = ModelOptions(kind, head_width=8, response_init=False)
        records = {task: record(task, number) for task, number in channels.items()}
        return SavedModel(model, "resnet10t", options, records, metadata or {})

    return get


def outputs(saved, images):
    with torch.no_grad():
        return saved.model(images).final


@pytest.mark.parametrize("kind", ["rcm", "single", "frozen", "series_adapters"])
def test_merged_models_have_the_outputs_of_their_parts(trained, images, kind):
    first = trained(kind, {"weights": "a", "steps": "1"}, edges=1, depth=1)
    second = trained(kind, {"weights": "a", "steps": "2"}, normals=3)
    bank = {key: value.clone() for key, value in first.model.state_dict().items() if ".tasks." not in key}
    merged = merge_models({"a": first, "b": second})
    assert merged.model.tasks == ("edges", "depth", "normals")
    assert merged.tasks == {**first.tasks, **second.tasks}
    assert merged.metadata == {"weights": "a"}
    found = outputs(merged, images)
    for part in (first, second):
        for task, expected in outputs(part, images).items():
            assert expected.std() > 0.05
            assert torch.equal(found[task], expected)
    state = merged.model.state_dict()
    assert bank
    assert all(torch.equal(state[key], value) for key, value in bank.items())
    # The parts do not share memory with the merged model.
    before = {key: value.clone() for key, value in second.model.state_dict().items()}
    with torch.no_grad():
        for parameter in merged.model.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in second.model.state_dict().items())


def test_refused_merges(trained, record, disturb):
    first, second = trained(edges=1), trained(depth=1)
    with pytest.raises(ValueError, match="nothing"):
        merge_models({})
    with pytest.raises(UserError, match="'a' is a resnet10t and 'b' a resnet18"):
        merge_models({"a": first, "b": dataclasses.replace(second, arch="resnet18")})
    wider = dataclasses.replace(second, options=ModelOptions("rcm", head_width=16, response_init=False))
    with pytest.raises(UserError, match="'a' has head_width=8 and 'b' head_width=16"):
        merge_models({"a": first, "b": wider})
    with pytest.raises(UserError, match="kind=rcm and 'b' kind=frozen"):
        merge_models({"a": first, "b": trained("frozen", depth=1)})
    again = trained(edges=1)
    assert merge_models({"a": first, "b": again}).model.tasks == ("edges",)
    relabelled = dataclasses.replace(
        again, tasks={"edges": dataclasses.replace(again.tasks["edges"], dataset="pascal")}
    )
    with pytest.raises(UserError, match="task 'edges' of 'b'"):
        merge_models({"a": first, "b": relabelled})
    disturb(again.model, "edges", seed=9)
    with pytest.raises(UserError, match="task 'edges' is in both 'a' and 'b' with different values"):
        merge_models({"a": first, "b": again})
    with torch.no_grad():
        next(p for name, p in second.model.named_parameters() if name.endswith("bank")).add_(1e-3)
    with pytest.raises(UserError, match="'b' does not have the filter bank of 'a'"):
        merge_models({"a": first, "b": second})
    shared = trained("multi_task", edges=1)
    for call in (
        lambda: merge_models({"a": shared, "b": trained("multi_task", depth=1)}),
        lambda: add_tasks(shared, {"depth": record("depth", 1)}),
    ):
        with pytest.raises(UserError, match="model.kind=multi_task: tasks cannot be") as error:
            call()
        assert "\n" not in str(error.value)


def test_adding_and_removing(trained, record, images):
    saved = trained(edges=1)
    old = outputs(saved, images)["edges"]
    more = add_tasks(saved, {"normals": record("normals", 3), "depth": record("depth", 1)})
    assert more.model.tasks == tuple(more.tasks) == ("edges", "normals", "depth")
    wanting = {name for name, parameter in more.model.named_parameters() if parameter.requires_grad}
    assert wanting
    assert not any("tasks.edges." in name for name in wanting)
    assert torch.equal(outputs(more, images)["edges"], old)
    with pytest.raises(UserError, match="'depth' is already"):
        add_tasks(more, {"parts": record("parts", 7), "depth": record("depth", 1)})
    assert more.model.tasks == ("edges", "normals", "depth")
    less = remove_task(remove_task(more, "normals"), "depth")
    assert less.model.tasks == tuple(less.tasks) == ("edges",)
    assert torch.equal(outputs(less, images)["edges"], old)
    with pytest.raises(UserError, match="only task"):
        remove_task(less, "edges")
    with pytest.raises(UserError, match="'parts' is not in this model"):
        remove_task(less, "parts")


def test_removing_from_a_shared_encoder(trained, images):
    saved = trained("multi_task", edges=1, normals=3)
    expected = outputs(saved, images)["normals"]
    less = remove_task(saved, "edges")
    assert less.model.tasks == ("normals",)
    assert torch.equal(outputs(less, images)["normals"], expected)
