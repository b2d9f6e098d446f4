"""Small models of every kind."""

import pytest

from polyscene.downstream.multitask.data.opening import TaskRecord
from polyscene.downstream.multitask.models.build import ModelOptions, build_model


@pytest.fixture(scope="session")
def make(weights, moments):
    """Kind and tasks -> a model on resnet10t with narrow heads."""

    def build(kind, channels=None, seed=0, response_init=False, image_level=(), **options):
        options = ModelOptions(kind, head_width=8, response_init=response_init, **options)
        channels = {"edges": 1, "normals": 3} if channels is None else channels
        found = moments("resnet10t") if options.needs_moments else None
        return build_model(options, weights("resnet10t"), channels, found, seed, image_level)

    return build


@pytest.fixture(scope="session")
def record():
    """Name and channels -> the record of a task."""

    def get(name, channels, image_level=False):
        return TaskRecord(
            name=name, dataset="nyud", channels=channels, classes=(), settings={}, source="", image_level=image_level
        )

    return get
