"""Models of every kind, changed as training would."""

import pytest

from polyscene.downstream.multitask.data.opening import TaskRecord
from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.models.model_file import SavedModel


@pytest.fixture(scope="session")
def trained(weights, moments, disturb):
    """Kind and options -> a model of two tasks on resnet10t, in evaluation mode."""

    def get(kind, **options):
        options = ModelOptions(kind, head_width=8, response_init="rank" in options, **options)
        found = moments("resnet10t") if options.needs_moments else None
        model = build_model(options, weights("resnet10t"), {"edges": 1, "normals": 3}, found)
        disturb(model, "edges")
        disturb(model, "normals", seed=4)
        records = {
            "edges": TaskRecord("edges", "nyud", 1, (), {}, ""),
            "normals": TaskRecord("normals", "nyud", 3, (), {"normals_axes": "nyud"}, ""),
        }
        return SavedModel(model, "resnet10t", options, records, {"steps": "3"})

    return get
