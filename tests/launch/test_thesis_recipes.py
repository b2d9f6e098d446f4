"""The recipes of MTI-Net, PAD-Net, their baselines and task balancing against chapters 5 and 6 of the thesis."""

import functools
import re

import pytest

from polyscene.downstream.multitask.data import nyud, pascal_context
from polyscene.downstream.multitask.models.families import make_empty_model
from polyscene.downstream.multitask.published import published_rows
from polyscene.downstream.multitask.published_tables import TABLES
from polyscene.launch.multitask_checks import check_values
from polyscene.launch.multitask_config import MultitaskConfig, auxiliary_tasks, is_multi_scale
from polyscene.launch.multitask_model import model_options
from polyscene.runtime.config import find_config, flatten, load_config, to_dict

MULTITASK = find_config("pretrain/base").parents[1] / "multitask"
ARCHS = {
    "hrnet18": "hrnet_w18_small_v2",
    "hrnet48": "hrnet_w48",
    "r18fpn": "resnet18",
    "r50fpn": "resnet50",
    "nyud/r50_aspp": "resnet50",
    "pascal/r18_aspp": "resnet18",
}
FOLDERS = [f"{data}/{name}" for data in ("nyud", "pascal") for name in ("hrnet18", "hrnet48", "r18fpn", "r50fpn")]
FOLDERS += ["nyud/r50_aspp", "pascal/r18_aspp"]
RECIPES = sorted(
    f"{folder}/{path.stem}" for folder in FOLDERS for path in (MULTITASK / folder).glob("*.yaml") if path.stem != "base"
)

# Printed table -> config of each of its rows, from top to bottom -> name of the row in `TABLES`, where the rows that
# repeat another table's have that one's.
N18, P18 = "nyud/hrnet18", "pascal/hrnet18"
ROWS = {
    "5.1a": [
        (f"{N18}/single", "5.1a", "single-task"),
        (f"{N18}/multi_task", "5.1a", "MTL"),
        (f"{N18}/pad_net", "5.1a", "PAD-Net"),
        (f"{N18}/pad_net_normals", "5.1a", "PAD-Net (N)"),
        (f"{N18}/pad_net_normals_edges", "5.1a", "PAD-Net (N+E)"),
        (f"{N18}/mti_net_no_fpm", "5.1a", "MTI-Net w/o FPM"),
        (f"{N18}/mti_net_no_fpm_normals", "5.1a", "MTI-Net w/o FPM (N)"),
        (f"{N18}/mti_net_no_fpm_normals_edges", "5.1a", "MTI-Net w/o FPM (N+E)"),
        (f"{N18}/mti_net", "5.1a", "MTI-Net"),
        (f"{N18}/mti_net_normals", "5.1a", "MTI-Net (N)"),
        (f"{N18}/mti_net_normals_edges", "5.1a", "MTI-Net (N+E)"),
    ],
    "5.1b": [
        (f"{P18}/single", "5.1b", "single-task"),
        (f"{P18}/multi_task_small", "5.1b", "MTL (s)"),
        (f"{P18}/multi_task", "5.1b", "MTL"),
        (f"{P18}/mti_net_small", "5.1b", "MTI-Net (s)"),
        (f"{P18}/mti_net_small_edges", "5.1b", "MTI-Net (s)(E)"),
        (f"{P18}/mti_net_small_normals", "5.1b", "MTI-Net (s)(N)"),
        (f"{P18}/mti_net_small_edges_normals", "5.1b", "MTI-Net (s)(E+N)"),
        (f"{P18}/mti_net", "5.1b", "MTI-Net"),
    ],
    "5.2": [
        (f"{N18}/single", "5.1a", "single-task"),
        (f"{N18}/pad_net", "5.1a", "PAD-Net"),
        (f"{N18}/mti_net_scales_4_8", "5.2", "MTI-Net, 1/4, 1/8"),
        (f"{N18}/mti_net_scales_4_8_16", "5.2", "MTI-Net, 1/4, 1/8, 1/16"),
        (f"{N18}/mti_net", "5.1a", "MTI-Net"),
    ],
    # Four rows are of the front ends of one run.
    "5.3": [(f"{N18}/single", "5.1a", "single-task"), *[(f"{N18}/mti_net", "5.3", "MTI-Net, final output")] * 5],
    # Without the rows of ASTMT and of its backbones, which is another model.
    "5.4": [
        ("pascal/r18fpn/single", "5.4", "single-task, FPN"),
        ("pascal/r50fpn/single", "5.4", "single-task, FPN"),
        (f"{P18}/single", "5.1b", "single-task"),
        (f"{P18}/pad_net", "5.4", "PAD-Net"),
        ("pascal/r18fpn/mti_net", "5.4", "MTI-Net, FPN"),
        ("pascal/r50fpn/mti_net", "5.4", "MTI-Net, FPN"),
        (f"{P18}/mti_net", "5.4", "MTI-Net"),
    ],
    # Without those of other papers.
    "5.5": [("nyud/hrnet48/single", "5.5", "single-task"), ("nyud/hrnet48/mti_net", "5.5", "MTI-Net")],
    "5.6a": [
        (f"{N18}/single", "5.1a", "single-task"),
        (f"{N18}/multi_task", "5.1a", "MTL"),
        (f"{N18}/pad_net", "5.1a", "PAD-Net"),
        (f"{N18}/mti_net", "5.1a", "MTI-Net"),
    ],
    # Without ASTMT.
    "5.6b": [
        ("pascal/r50fpn/single", "5.4", "single-task, FPN"),
        ("pascal/r50fpn/multi_task", "5.6b", "MTL, FPN"),
        ("pascal/r50fpn/mti_net", "5.4", "MTI-Net, FPN"),
    ],
    **{
        table: [
            (f"{folder}/single", table, "single-task"),
            (f"{folder}/balancing_fixed", table, "fixed weights"),
            (f"{folder}/balancing_uncertainty", table, "uncertainty weighting"),
            (f"{folder}/balancing_dwa", table, "DWA"),
            (f"{folder}/balancing_gradnorm", table, "GradNorm"),
            (f"{folder}/balancing_mgda", table, "MGDA"),
        ]
        for table, folder in (("6.2b", "nyud/r50_aspp"), ("6.2c", "pascal/r18_aspp"))
    },
}
PAIRS = sorted({row for rows in ROWS.values() for row in rows})


@functools.cache
def recipe(name):
    return load_config(MultitaskConfig, f"multitask/{name}", ["weights=given", "data.root=given"])


def text_of(name):
    """The comments of a file as one line."""
    return " ".join(re.findall(r"^ *# ?(.*)$", (MULTITASK / f"{name}.yaml").read_text(), re.MULTILINE))


def printed_row(config, number, name):
    """The table and the row of it, for the config's data set and backbone."""
    found = [
        (table, row)
        for table in TABLES
        for row in table.rows
        if (table.source, table.dataset, table.arch) == (f"thesis table {number}", config.data.kind, config.arch)
        and row[0] == name
    ]
    assert len(found) == 1
    return found[0]


def test_every_row_of_the_thesis_has_its_config():
    counts = {table: len(rows) for table, rows in ROWS.items()}
    assert counts == {
        **{"5.1a": 11, "5.1b": 8, "5.2": 5, "5.3": 6, "5.4": 12 - 5, "5.5": 2, "5.6a": 4, "5.6b": 4 - 1},
        **{"6.2b": 6, "6.2c": 6},
    }
    assert {file for rows in ROWS.values() for file, *_ in rows} <= set(RECIPES)
    # And every published row of chapters 5 and 6 belongs to a config, but for ASTMT's.
    printed = {
        (table.source.removeprefix("thesis table "), table.arch, row[0])
        for table in TABLES
        for row in table.rows
        if re.match(r"thesis table [56]\.", table.source)
    }
    used = {(number, recipe(file).arch, name) for file, number, name in PAIRS}
    assert printed - used == {("5.4", "resnet50", "ASTMT, FPN")}


@pytest.mark.parametrize(("file", "number", "name"), PAIRS)
def test_configs_quote_their_rows_and_results_show_them(file, number, name):
    config = recipe(file)
    table, (_, *numbers) = printed_row(config, number, name)
    scores, change = dict(zip(table.columns, numbers)), numbers[-1]
    scores = {task: score for task, score in scores.items() if score is not None}
    if number != "5.4" or not file.startswith(P18) or name != "MTI-Net":  # 5.1b has this row with more digits
        digits = 2 if number in ("5.1a", "5.1b", "5.2", "5.3") else 1
        shown = " / ".join(f"{score:.{3 if task == 'depth' else digits}f}" for task, score in scores.items())
        assert shown in text_of(file)
    assert change is None or f"{change:+.2f}%" in text_of(file)
    assert f"table {number}" in text_of(file).lower()
    assert not scores or set(config.tasks) >= set(scores)

    data = {
        "nyud": lambda: nyud.tasks(depth_protocol=config.data.depth_protocol),
        "pascal": lambda: pascal_context.tasks(saliency_protocol=config.data.saliency_protocol),
    }[config.data.kind]()
    specs = {task: data[task] for task in config.tasks}
    images = {"nyud": 654, "pascal": 5105}[config.data.kind]
    found = published_rows(config.data.kind, images, config.arch, specs, multi_scale=is_multi_scale(config))
    ours = next(row for row in found if (row.source, row.name) == (table.source, name))
    assert {key for key in ours.values if key not in ("delta", *table.more)} == {
        f"{task}_{specs[task].metric}" for task in scores
    }
    assert ("delta" in ours.values) == (change is not None)


@pytest.mark.parametrize("name", RECIPES)
def test_all_follow_the_recipe_of_chapter_5(name):
    config = recipe(name)
    check_values(config)
    data, folder, file = name.split("/")
    optim = config.optim
    assert (optim.kind, optim.lr, optim.weight_decay, optim.schedule, optim.power) == ("adam", 1e-4, 1e-4, "epoch", 0.9)
    assert optim.sync_batch_norm
    assert (config.batch_size, config.epochs, config.iterations) == (8, 100, None)
    size = {"nyud": (480, 640), "pascal": (512, 512)}[data]
    assert (config.augmentation.recipe, config.augmentation.size) == (f"mti_net_{data}", size)
    assert config.evaluate.stretch == size
    assert (config.data.kind, config.data.depth_protocol) == (data, "survey")
    assert data == "nyud" or config.data.saliency_protocol == "survey"
    assert config.arch == ARCHS.get(f"{data}/{folder}", ARCHS.get(folder))
    assert config.out == f"runs/multitask/{name}"
    everything = {
        "nyud": ("segmentation", "depth"),
        "pascal": ("segmentation", "parts", "saliency", "edges", "normals"),
    }
    assert config.tasks == (everything[data][:3] if "_small" in file else everything[data])
    weights = {
        "nyud": {"segmentation": 1, "depth": 1, "normals": 10, "edges": 50},
        "pascal": {"segmentation": 1, "parts": 2, "saliency": 5, "edges": 50, "normals": 10},
    }[data]
    assert config.task_weights == weights or (config.task_weights is None and "balancing" in file)
    # What follows 'mti_net', 'no_fpm' and 'small' are the auxiliary tasks.
    words = [word for word in file.split("_") if word in ("edges", "normals")]
    assert list(auxiliary_tasks(config)) == words
    model_options(config)  # accepted by the library


@pytest.mark.parametrize("name", RECIPES)
def test_switches_are_what_the_names_say(name):
    model, (data, folder, file) = recipe(name).model, name.split("/")
    if "aspp" in folder:
        assert (model.head, model.output_stride) == ("aspp", 8)
        assert model.kind == ("single" if file == "single" else "multi_task")
        return
    assert model.kind == re.match("single|multi_task|pad_net|mti_net", file)[0]
    interacts = model.kind in ("pad_net", "mti_net")
    assert model.head == (None if interacts else "semantic_fpn" if "fpn" in folder else "aggregation")
    assert "fpn" not in folder or model.pyramid_width == (96 if interacts else 256)
    assert model.mti_net.fpm == ("no_fpm" not in file)
    assert model.mti_net.fpm_softmax == ("published" if "published_code" in file else "tasks")
    narrow = "published_code" in file or (data, folder) == ("pascal", "hrnet48")
    assert model.mti_net.fpm_narrowing == (4 if narrow else 1)
    assert model.pad_net.distillation == ("thesis" if file == "pad_net_thesis" else "published")
    scales = tuple(map(int, file.split("scales_")[1].split("_"))) if "scales" in file else (4, 8, 16, 32)
    assert model.scales == scales
    assert recipe(name).evaluate.front_ends == (name == f"{N18}/mti_net")


def test_twins_differ_in_nothing_but_their_folder():
    twins = [name for name in RECIPES if name.endswith("_ssl")]
    for data, most in (("nyud", 6), ("pascal", 5)):
        for folder in ("r18fpn", "r50fpn"):
            assert sum(name.startswith(f"{data}/{folder}/") for name in twins) == most
            files = {name for name in RECIPES if name.startswith(f"{data}/{folder}/")}
            assert {name.removesuffix("_ssl") for name in files} == files - set(twins)
    for name in twins:
        ours, theirs = (dict(flatten(to_dict(recipe(n)))) for n in (name, name.removesuffix("_ssl")))
        assert {key for key in ours if ours[key] != theirs[key]} == {"out"}
        assert "self-supervised" in text_of(name)


def test_balancing_strategies():
    strategies = {"fixed", "uniform", "uncertainty", "gradnorm", "dwa", "dtp", "mgda", "similar_losses"}
    for data, folder in (("nyud", "r50_aspp"), ("pascal", "r18_aspp")):
        files = {path.stem for path in (MULTITASK / data / folder).glob("balancing_*.yaml")}
        # On NYUD fixed weights are uniform.
        assert files == {f"balancing_{name}" for name in strategies - ({"uniform"} if data == "nyud" else set())}
        for file in files:
            config = recipe(f"{data}/{folder}/{file}")
            assert config.balancing.strategy == file.removeprefix("balancing_")
            # Strategies that find the scale of the losses start from 1, the others from the grid search (6.3.1).
            alone = config.balancing.strategy in ("uncertainty", "gradnorm", "mgda", "similar_losses")
            assert data == "nyud" or (config.task_weights is None) == alone
    assert recipe("pascal/r18_aspp/balancing_gradnorm").balancing.gradnorm_alpha == 1
    uniform = recipe("nyud/r50_aspp/balancing_fixed")
    assert {uniform.task_weights[task] for task in uniform.tasks} == {1}


def test_what_switches_add_to_the_network():
    """Built from the files: parameters grow with scales, propagation and auxiliary tasks; shapes fit each other."""
    channels = {"segmentation": 40, "depth": 1, "normals": 3, "edges": 1}

    def parameters(file):
        config = recipe(f"{N18}/{file}")
        main, extra = ({task: channels[task] for task in tasks} for tasks in (config.tasks, auxiliary_tasks(config)))
        model = make_empty_model(model_options(config), config.arch, main, auxiliary=extra or None)
        return sum(parameter.numel() for parameter in model.parameters())

    mti_net = parameters("mti_net")
    assert parameters("mti_net_scales_4_8") < mti_net
    assert parameters("mti_net_no_fpm") < parameters("mti_net_published_code") < mti_net
    assert mti_net < parameters("mti_net_normals_edges")
    assert parameters("pad_net_thesis") < parameters("pad_net")
