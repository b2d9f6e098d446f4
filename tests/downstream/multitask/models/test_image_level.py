"""Image-level tasks in models on one encoder: the head, its bits, files, and tasks that come and go."""

import pytest
import torch
from torch.nn import functional as F

from polyscene.downstream.multitask.export.fold import fold_model
from polyscene.downstream.multitask.export.plain_file import load_plain, plain_header, save_plain
from polyscene.downstream.multitask.models.build import KINDS, ModelOptions
from polyscene.downstream.multitask.models.incremental import add_tasks, merge_models, remove_task
from polyscene.downstream.multitask.models.model_file import SavedModel, load_model, save_model

ALL = {"edges": 1, "scene": 3}


@pytest.fixture
def saved(make, record):
    """Kind and tasks -> a model with its records."""

    def get(kind, channels, seed=0):
        options = ModelOptions(kind, head_width=8, response_init=False)
        model = make(kind, channels, seed, image_level=[task for task in channels if task == "scene"])
        records = {task: record(task, number, task == "scene") for task, number in channels.items()}
        return SavedModel(model, "resnet10t", options, records)

    return get


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_linear_classifier_on_the_last_stage(make, images, kind):
    model = make(kind, ALL, image_level=("scene",))
    outputs = model(images).final
    assert outputs["edges"].shape == (3, 1, 64, 64)
    assert outputs["scene"].shape == (3, 3, 1, 1)
    assert model.image_level == ("scene",)
    head, maps = model.heads.tasks["scene"], model.task_maps(images, ["scene"])["scene"]
    assert model.head_parameters("scene") == 3 * (maps[-1].shape[1] + 1)
    features = maps[-1].flatten(2).mean(2)
    expected = F.linear(features, head.prediction.weight.flatten(1), head.prediction.bias)
    torch.testing.assert_close(outputs["scene"].flatten(1), expected)


@pytest.mark.parametrize("kind", ["rcm", "multi_task", "single"])
@torch.no_grad()
def test_the_dense_task_beside_it_keeps_its_bits(make, images, kind):
    alone, both = make(kind, {"edges": 1}), make(kind, ALL, image_level=("scene",))
    assert torch.equal(alone(images).final["edges"], both(images).final["edges"])
    assert torch.equal(
        both.heads.tasks["scene"].prediction.weight,
        make(kind, {"scene": 3}, image_level=("scene",)).heads.tasks["scene"].prediction.weight,
    )


@pytest.mark.parametrize("kind", ["rcm", "multi_task"])
@torch.no_grad()
def test_a_model_file_remembers_it(saved, disturb, images, tmp_path, kind):
    found = saved(kind, ALL)
    disturb(found.model, "scene")
    save_model(tmp_path / "model.safetensors", found)
    again = load_model(tmp_path)
    assert again.tasks == found.tasks
    assert again.model.image_level == ("scene",)
    assert torch.equal(again.model(images).final["scene"], found.model(images).final["scene"])


def test_records_that_contradict_the_model_are_not_written(saved, record, tmp_path):
    found = saved("frozen", ALL)
    found.tasks["scene"] = record("scene", 3)
    with pytest.raises(ValueError, match="other image-level tasks"):
        save_model(tmp_path / "model.safetensors", found)


@torch.no_grad()
def test_it_comes_and_goes_like_any_task(saved, record, images):
    before = saved("rcm", {"edges": 1})
    expected = before.model(images).final["edges"]
    added = add_tasks(before, {"scene": record("scene", 3, True)})
    merged = merge_models({"first": saved("rcm", {"edges": 1}), "second": saved("rcm", {"scene": 3})})
    for model in (added.model, merged.model):
        found = model(images).final
        assert torch.equal(found["edges"], expected)
        assert found["scene"].shape == (3, 3, 1, 1)
    assert torch.equal(added.model(images).final["scene"], merged.model(images).final["scene"])
    less = remove_task(added, "scene")
    assert (less.model.tasks, less.model.image_level) == (("edges",), ())


@pytest.mark.parametrize("kind", ["rcm", "multi_task"])
@torch.no_grad()
def test_it_folds_into_a_plain_network(saved, disturb, images, tmp_path, kind):
    found = saved(kind, ALL)
    disturb(found.model, "scene")
    expected = found.model.eval()(images).final["scene"]
    network = fold_model(found.model, "scene")
    assert (network(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    save_plain(tmp_path / "scene.safetensors", found, "scene")
    again = load_plain(tmp_path / "scene.safetensors")
    assert torch.equal(again.network(images), network(images))
    assert again.record.image_level
    assert "(N, 3, 1, 1)" in plain_header(found, "scene")["output"]
    assert "(N, 1, H, W)" in plain_header(found, "edges")["output"]
