"""The shipped recipes against the tables of the thesis."""

import dataclasses
import re

import pytest

from polyscene.launch.cam_config import CamConfig
from polyscene.launch.pretrain_config import PretrainConfig
from polyscene.launch.probe_config import ProbeConfig
from polyscene.launch.propagate_config import PropagateConfig
from polyscene.launch.retrieve_config import RetrieveConfig
from polyscene.runtime.config import find_config, flatten, load_config
from polyscene.runtime.errors import UserError

TABLE = {  # the thesis' tables: epochs, large and small crops, constraint, momentum, augmentation, neighbours
    "coco_moco_200ep": (200, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
    "coco_multicrop_200ep": (200, (2, 160), (4, 96), "none", 0.999, "standard", (0, 0.0)),
    "coco_constrained_200ep": (200, (2, 160), (4, 96), "overlap", 0.999, "standard", (0, 0.0)),
    "coco_momentum_200ep": (200, (2, 160), (4, 96), "overlap", 0.995, "standard", (0, 0.0)),
    "coco_aplus_200ep": (200, (2, 160), (4, 96), "overlap", 0.995, "mix", (0, 0.0)),
    "coco_knn_200ep": (200, (2, 160), (4, 96), "overlap", 0.995, "mix", (20, 0.4)),
    "coco_knn_800ep": (800, (2, 160), (4, 96), "overlap", 0.995, "mix", (20, 0.4)),
    "coco_moco_400ep": (400, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
    "openimages118k_400ep": (400, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
    "bdd100k_400ep": (400, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
    "imagenet118k_400ep": (400, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
    "imagenet118k_lt_400ep": (400, (2, 224), (0, 96), "none", 0.999, "standard", (0, 0.0)),
}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_recipes_equal_the_thesis(name):
    c = load_config(PretrainConfig, f"pretrain/{name}", ["data.root=x"])
    epochs, large, small, constraint, momentum, augmentation, neighbours = TABLE[name]
    assert (c.epochs, c.model.momentum, c.views.augmentation) == (epochs, momentum, augmentation)
    assert (c.views.large.count, c.views.large.size) == large
    assert (c.views.small.count, c.views.small.size) == small
    assert (c.views.constraint if c.views.small.count else "none") == constraint
    assert (c.neighbours.k, c.neighbours.weight) == neighbours
    assert (c.views.large.scale, c.views.small.scale) == ((0.2, 1.0), (0.05, 0.14))
    assert (c.model.backbone, c.model.dim, c.model.queue, c.model.temperature) == ("resnet50", 128, 65536, 0.2)
    assert (c.batch_size, c.optim.lr, c.optim.momentum, c.optim.weight_decay) == (256, 0.3, 0.9, 1e-4)
    assert (c.optim.warmup_epochs, c.views.min_overlap, c.views.max_iou, c.precision) == (0, 0.1, None, "bf16")
    assert (c.model.norm.kind, c.model.norm.group) == ("auto", 128)


def test_data_sets_of_the_recipes():
    data = {n: load_config(PretrainConfig, f"pretrain/{n}", ["data.root=x"]).data for n in TABLE}
    assert all(d.kind == "coco" and d.subset is None for n, d in data.items() if n.startswith("coco"))
    assert (data["openimages118k_400ep"].kind, data["openimages118k_400ep"].subset) == ("openimages", 118000)
    assert (data["bdd100k_400ep"].kind, data["bdd100k_400ep"].splits) == ("bdd100k", ("train", "test"))
    assert (data["imagenet118k_400ep"].kind, data["imagenet118k_400ep"].long_tailed) == ("imagenet", False)
    assert data["imagenet118k_lt_400ep"].long_tailed
    assert data["imagenet118k_lt_400ep"].subset == 118000


def test_every_shipped_recipe_is_in_the_table():
    shipped = {p.stem for p in find_config("pretrain/base").parent.glob("*.yaml")}
    assert shipped == {*TABLE, "base", "quickstart"}


EVALUATIONS = {"probe": ProbeConfig, "retrieve": RetrieveConfig, "propagate": PropagateConfig, "cam": CamConfig}
SHIPPED = [
    (command, path.stem)
    for command in EVALUATIONS
    for path in sorted((find_config("pretrain/base").parents[1] / command).glob("*.yaml"))
]


@pytest.mark.parametrize(("command", "name"), SHIPPED)
def test_evaluation_configs_are_complete_but_for_the_users_paths(command, name):
    """What is missing is refused by name, one key at a time, and is a path; with it the config is valid."""
    words = []
    for _ in range(6):
        try:
            config = load_config(EVALUATIONS[command], f"{command}/{name}", words)
            break
        except UserError as error:
            key = re.search(r"'([\w.]+)' is required", str(error)).group(1)
            assert key in ("weights", "out") or key.startswith("data.")
            words.append(f"{key}=given")
    assert config.baseline == "random"
    assert name != "quickstart" or not words
    assert not [key for key, value in flatten(dataclasses.asdict(config)) if value == "???"]


def test_every_evaluation_ships_a_config():
    assert {command for command, _ in SHIPPED} == set(EVALUATIONS)
