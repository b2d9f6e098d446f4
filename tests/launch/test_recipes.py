"""The shipped recipes against the tables of the thesis."""

import dataclasses
import re

import pytest

from polyscene.downstream.multitask.published_tables import TABLES
from polyscene.launch.cam_config import CamConfig
from polyscene.launch.multitask_checks import check_values
from polyscene.launch.multitask_config import MultitaskConfig
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


MULTITASK = find_config("pretrain/base").parents[1] / "multitask"
RECIPES = sorted(str(path.relative_to(MULTITASK).with_suffix("")) for path in MULTITASK.rglob("*.yaml"))
# File -> the row of the paper's table that its comment quotes.
ROWS = {
    "single": "single-task",
    "multi_task": "multi-task",
    "frozen": "frozen encoder",
    "task_norms": "task-specific BNs",
    "task_convolutions": "task-specific convolutions",
    "series_adapters": "Series RA",
    "parallel_adapters": "Parallel RA",
    "rc": "RC",
    "rc_nff": "RC + NFF",
    "rc_ri": "RC + RI",
    "rcm": "RCM",
}


def multitask_recipe(name, *words):
    """A recipe with the paths that its users give."""
    given = () if name.startswith("scenes/") else ("weights=given", "data.root=given")
    out = ("out=given",) if name.endswith("base") else ()
    return load_config(MultitaskConfig, f"multitask/{name}", [*given, *out, *words])


@pytest.mark.parametrize("name", RECIPES)
def test_multitask_recipes_are_complete_but_for_the_users_paths(name):
    config = multitask_recipe(name)
    check_values(config)
    assert config.out == "given" or config.out.startswith("runs/")
    assert (MULTITASK / f"{name}.yaml").read_text().startswith("# ")


def test_multitask_recipes_write_to_different_folders():
    outs = [multitask_recipe(name).out for name in RECIPES if not name.endswith("base")]
    assert len(set(outs)) == len(outs)


@pytest.mark.parametrize(("folder", "source"), [("nyud", "table 4"), ("pascal", "tables 1-3")])
def test_r18_recipes_equal_the_rcm_paper(folder, source):
    table = next(table for table in TABLES if source in table.source)
    quoted = {name: numbers for name, *numbers in table.rows}
    for file, row in ROWS.items():
        text = (MULTITASK / folder / "r18" / f"{file}.yaml").read_text()
        config = multitask_recipe(f"{folder}/r18/{file}")
        assert set(config.tasks) == set(table.columns)
        if row in quoted:
            *scores, drop = quoted[row]
            assert " / ".join(f"{score:.2f}" for score in scores) in text
            assert drop is None or f"{drop:.2f}%" in text
            assert config.tasks == tuple(table.columns)
        assert config.model.kind == (file if file in ("single", "multi_task", "frozen") else config.model.kind)
        assert (config.model.rcm.normalized, config.model.rcm.response_init) == {
            "rc": (False, False), "rc_nff": (True, False), "rc_ri": (False, True)
        }.get(file, (True, True))  # fmt: skip
        assert (config.arch, config.model.head, config.model.output_stride) == ("resnet18", "deeplab_v3_plus", 16)
        assert (config.batch_size, config.iterations) == (8, {"nyud": 19875, "pascal": 37500}[folder])
        assert config.augmentation.size == {"nyud": (425, 560), "pascal": (512, 512)}[folder]
        optim = config.optim
        assert (optim.kind, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.005, 0.9, 1e-4)
        assert (optim.schedule, optim.power, config.augmentation.recipe) == ("iteration", 0.9, "rcm")


def test_r50_recipes_equal_thesis_table_7_10():
    table = next(table for table in TABLES if "7.10" in table.source)
    for name, segmentation, depth, _ in table.rows:
        setup, init = name.split(", ")
        file = f"{setup.replace('-', '_').replace('single_task', 'single')}_{init.lower()}"
        config = multitask_recipe(f"nyud/r50_ssl/{file}")
        assert f"{segmentation} / {depth:.3f}" in (MULTITASK / "nyud" / "r50_ssl" / f"{file}.yaml").read_text()
        assert config.model.kind == ("single" if setup == "single-task" else "multi_task")
        assert (config.arch, config.model.head, config.tasks) == ("resnet50", "aspp", ("segmentation", "depth"))


def test_incremental_recipes_add_the_tasks_that_are_missing():
    files = sorted((MULTITASK / "pascal/r18/incremental").glob("*_start.yaml"))
    assert len(files) == 6
    for file in files:
        first = multitask_recipe(f"pascal/r18/incremental/{file.stem}")
        then = multitask_recipe(f"pascal/r18/incremental/{file.stem.removesuffix('_start')}")
        assert then.model.base == first.out
        assert then.model.kind == first.model.kind
        assert set(first.tasks) | set(then.tasks) == {"edges", "segmentation", "parts", "normals", "saliency"}
        assert not set(first.tasks) & set(then.tasks)
