"""Tasks whose gradients are known, minibatches of random images, and small models of every kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyscene.downstream.multitask.data.transforms import Batch
from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.tasks import depth
from polyscene.downstream.multitask.tasks.spec import Target


def _loss(output, values, valid):
    return torch.where(valid.unsqueeze(1), output - values, 0).square().mean()


def _opposite(output, values, valid):
    return -_loss(output, values, valid)


@pytest.fixture(scope="session")
def tasks():
    """Names -> tasks that regress one value a pixel; the one called ``opposite`` has the negative loss."""

    def make(*names):
        spec = depth.task()
        return {name: replace(spec, name=name, loss=_opposite if name == "opposite" else _loss) for name in names}

    return make


@pytest.fixture(scope="session")
def batches():
    """``batches(names, count, same)``: minibatches of 2 images with targets; all tasks of ``same`` have the same."""

    def make(names, count=6, same=(), size=32):
        generator = np.random.default_rng(0)
        made = []
        for _ in range(count):
            images = torch.from_numpy(generator.integers(0, 256, (2, 3, size, size), dtype=np.uint8))
            shared = torch.from_numpy(generator.normal(size=(2, 1, size, size)).astype(np.float32))
            targets = {}
            for name in names:
                own = torch.from_numpy(generator.normal(size=(2, 1, size, size)).astype(np.float32))
                valid = torch.ones(2, size, size, dtype=torch.bool)
                targets[name] = Target(shared if name in same else 5 * own, valid)
            made.append(Batch([f"{len(made)}a", f"{len(made)}b"], images, targets))
        return made

    return make


@pytest.fixture
def model(weights):
    """``model(kind, *names)``: a small model whose heads are all the same."""

    def make(kind, *names):
        options = ModelOptions(kind, head="aspp", head_width=8, response_init=False)
        made = build_model(options, weights("resnet10t"), dict.fromkeys(names, 1))
        first = made.heads.tasks[names[0]].state_dict()
        for head in made.heads.tasks.values():
            head.load_state_dict(first)
        return made

    return make
