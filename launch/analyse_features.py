"""``polyscene analyse features``: what the encoder shows every task, in one or several models, as colours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from polyscene.downstream.multitask.analysis.features import FeatureComparison, compare_features, layer_maps
from polyscene.downstream.multitask.analysis.parameters import TITLES
from polyscene.downstream.multitask.analysis.pictures import draw_features
from polyscene.downstream.multitask.data.opening import task_of
from polyscene.downstream.multitask.data.transforms import pad_image, stretch_image
from polyscene.downstream.multitask.rcm.image_moments import find_images
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import normalise
from polyscene.runtime.images import read_image
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture

from .analyse_config import FeaturesConfig
from .analyse_run import OpenedRun, chosen_tasks, config_of, finish, open_folder, open_images, open_model

# Task -> layer -> (C, h, w) for every image, of one run.
Maps = dict[str, dict[str, list[Tensor]]]


def analyse_features(config: FeaturesConfig) -> int:
    """Compute, draw and write; returns the exit code.

    Raises:
        UserError: runs of different backbones, a task that none has, or wrong images.
    """
    runs = [open_model(path) for path in config.runs]
    other = next((run for run in runs if run.saved.arch != runs[0].saved.arch), None)
    if other is not None:
        raise UserError(
            f"'{runs[0].path}' is a {runs[0].saved.arch} and '{other.path}' a {other.saved.arch}; features are "
            "compared within one backbone"
        )
    tasks = _tasks(config, runs)
    names = _names(runs)
    images = [_reduced(read_image(path), config.longest) for path in _photos(config, runs[0])]
    device = choose_device(config.device)
    folder = open_folder(config, "features")
    if folder is None:
        return 0
    maps = []
    with ProgressBar(folder.console, "features", len(runs)) as bar:
        for done, run in enumerate(runs, start=1):
            wanted = [task for task in tasks if task in run.saved.tasks]
            maps.append(_maps(run, images, wanted, config.layers, device))
            bar.update(done)
    found: dict[str, FeatureComparison] = {}
    pictures = []
    photos = [image.permute(1, 2, 0).numpy() for image in images]
    for task in tasks:
        models = {name: own[task] for name, own in zip(names, maps) if task in own}
        found[task] = compare_features(models)
        spec = task_of(next(run.saved.tasks[task] for run in runs if task in run.saved.tasks))
        file = f"features_{task}.png"
        draw_features(photos, found[task].pictures, spec.title, folder.pictures / file)
        caption = f"{spec.title}: first three principal components, common to {', '.join(models)}"
        pictures.append(Picture(f"pictures/{file}", caption))
    finish(folder, _evaluation(config, runs, found, pictures, len(images)), _table(found, config.layers))
    return 0


def _tasks(config: FeaturesConfig, runs: Sequence[OpenedRun]) -> list[str]:
    """The tasks to show, in the order in which the runs have them."""
    present = list(dict.fromkeys(task for run in runs for task in run.saved.tasks))
    if config.tasks is None:
        return present
    if len(runs) == 1:
        return list(chosen_tasks(runs[0], config.tasks))
    missing = next((task for task in config.tasks if task not in present), None)
    if missing is not None:
        raise UserError(f"tasks: no run has '{missing}'; they have {', '.join(present)}")
    return [task for task in present if task in config.tasks]


def _names(runs: Sequence[OpenedRun]) -> list[str]:
    """What every run is called: by the kind of its model, with its folder where that does not tell runs apart.

    Runs of one kind with different tasks are one method, whose tasks were trained separately.
    """
    names = [TITLES[run.saved.options.kind] for run in runs]
    counts = Counter((name, task) for name, run in zip(names, runs) for task in run.saved.tasks)
    unclear = {name for (name, _), count in counts.items() if count > 1}
    return [f"{name} ({run.name})" if name in unclear else name for name, run in zip(names, runs)]


def _photos(config: FeaturesConfig, first: OpenedRun) -> list[Path]:
    if config.images is not None:
        return find_images(config.images, config.count)
    settings = config_of(first, config.data)
    images = open_images(settings, settings.data.val, first, first.saved.model.tasks)
    count = min(config.count, len(images))
    return [images.image_path(i * len(images) // count) for i in range(count)]


def _reduced(image: Tensor, longest: int | None) -> Tensor:
    height, width = image.shape[1:]
    if longest is None or max(height, width) <= longest:
        return image
    factor = longest / max(height, width)
    return stretch_image(image, (max(1, round(height * factor)), max(1, round(width * factor))))


def _maps(
    run: OpenedRun, images: Sequence[Tensor], tasks: Sequence[str], layers: Sequence[str], device: torch.device
) -> Maps:
    """The features of all images, cut to the cells that the image covers."""
    model = run.saved.model.to(device)
    maps: Maps = {task: {layer: [] for layer in layers} for task in tasks}
    for image in images:
        height, width = image.shape[1:]
        padded = pad_image(image, multiple=run.saved.options.multiple)
        batch = normalise(padded[None].to(device)).contiguous(memory_format=torch.channels_last)
        for task, found in layer_maps(model, batch, tasks, layers).items():
            for layer, (each,) in found.items():
                rows, columns = (
                    -(-n * cells // whole) for n, cells, whole in zip((height, width), each.shape[1:], padded.shape[1:])
                )
                maps[task][layer].append(each[:, :rows, :columns])
    model.cpu()
    return maps


def _evaluation(
    config: FeaturesConfig,
    runs: Sequence[OpenedRun],
    found: dict[str, FeatureComparison],
    pictures: Sequence[Picture],
    images: int,
) -> Evaluation:
    """How much of the features the colours show, and how much every model's features resemble the first one's."""
    shown = {
        f"{task} {layer}": float(basis.shares.sum())
        for task, each in found.items()
        for layer, basis in each.bases.items()
    }
    metrics, values = [Metric("variance", "variance shown")], {"variance": sum(shown.values()) / len(shown)}
    per_class = {"variance": {"weights": shown}}
    alike: dict[str, dict[str, float]] = {}
    for task, each in found.items():
        for model in list(each.cka)[1:]:
            alike.setdefault(model, {}).update({f"{task} {layer}": v for layer, v in each.cka[model].items()})
    for model, numbers in alike.items():
        key = "cka_" + re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
        metrics.append(Metric(key, f"CKA of {model}", unit=""))
        values[key] = sum(numbers.values()) / len(numbers)
        per_class[key] = {"weights": numbers}
    return Evaluation(
        command="analyse",
        title=f"Features as colours: {len(found)} tasks, {images} images",
        subject=", ".join(run.name for run in runs),
        metrics=metrics,
        values=values,
        per_class=per_class,
        pictures=pictures,
        protocol={
            "protocol": "features",
            **to_dict(config),
            "arch": runs[0].saved.arch,
            "kinds": [run.saved.options.kind for run in runs],
            "images_shown": images,
        },
    )


def _table(found: dict[str, FeatureComparison], layers: Sequence[str]) -> Table:
    table = Table(title="Variance in the three colours, and linear CKA with the first model")
    table.add_column("task")
    table.add_column("model")
    for layer in layers:
        table.add_column(layer, justify="right")
    for task, each in found.items():
        table.add_row(task, "variance shown", *(f"{float(each.bases[layer].shares.sum()):.0%}" for layer in layers))
        for model in list(each.cka)[1:]:
            table.add_row(task, f"CKA of {model}", *(f"{each.cka[model][layer]:.3f}" for layer in layers))
    return table
