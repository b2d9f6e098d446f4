"""``polyscene analyse affinity``: do two tasks find the same pixels alike, and how does that depend on the scale?"""

from __future__ import annotations

import math
from dataclasses import replace

from rich.table import Table
from torch import Tensor

from polyscene.downstream.multitask.analysis.affinity import (
    AffinityCounts,
    affinities_of,
    agreement,
    check_pattern,
    correspondence,
    count_affinities,
    kappa,
    matched_dissimilar,
    matched_similar,
)
from polyscene.downstream.multitask.analysis.affinity_figure import draw_affinities
from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.tasks.affinity import PixelAffinity
from polyscene.runtime.config import to_dict
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture

from .analyse_config import AffinityConfig
from .analyse_run import finish, open_folder
from .multitask_config import auxiliary_tasks, chosen_tasks
from .multitask_model import open_split
from .named_config import named_config

_OTHER_MEASURES = {
    "similar_matched": matched_similar,
    "dissimilar_matched": matched_dissimilar,
    "agreement": agreement,
    "kappa": kappa,
}


def analyse_affinity(config: AffinityConfig) -> int:
    """Count, draw and write; returns the exit code.

    Raises:
        UserError: no such config or data, or fewer than two tasks whose pixels can be compared.
    """
    check_pattern(config.kernel, config.dilations)
    images = _open(config)
    thresholds = _thresholds(config)
    affinities = affinities_of(images.tasks, thresholds)
    _check_room(config, images)
    run = open_folder(config, "affinity")
    if run is None:
        return 0
    run.log(f"affinities of {', '.join(affinities)}: {len(images)} images of {images.title}, list {images.split}")
    with ProgressBar(run.console, "images", len(images)) as bar:
        found = count_affinities(
            images,
            config.dilations,
            kernel=config.kernel,
            thresholds=thresholds,
            workers=config.workers,
            progress=bar.update,
        )
    titles = {name: spec.title for name, spec in images.tasks.items()}
    draw_affinities(found, titles, run.pictures / "affinity.png")
    finish(run, _evaluation(config, images, affinities, found), _table(found))
    return 0


def _open(config: AffinityConfig) -> DenseImages:
    """The images with the tasks that are asked for; without ``tasks=...`` those of the config that have affinities."""
    settings = named_config(config.runs[0], config.overrides)
    tasks = config.tasks or (*chosen_tasks(settings), *auxiliary_tasks(settings))
    if settings.data.person_images_only and "parts" not in tasks:
        settings = replace(settings, data=replace(settings.data, person_images_only=False))
    images = open_split(settings, settings.data.train if config.split == "train" else settings.data.val, tasks)
    if config.tasks is None:
        images = images.only([name for name, spec in images.tasks.items() if spec.affinity is not None])
    most = config.max_images
    if most is None or most >= len(images):
        return images
    return images.subset([i * len(images) // most for i in range(most)])


def _thresholds(config: AffinityConfig) -> dict[str, float]:
    for name, threshold in (config.thresholds or {}).items():
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise UserError(f"thresholds.{name}={threshold} must be a number")
    return dict(config.thresholds or {})


def _check_room(config: AffinityConfig, images: DenseImages) -> None:
    """Read the first image, and see whether the kernel fits into it."""
    height, width = images.read(0).image.shape[1:]
    most = (max(height, width) - 1) // (config.kernel // 2)
    if max(config.dilations) > most:
        raise UserError(
            f"dilations={list(config.dilations)}: the images are about {height}x{width}, which has room for at most "
            f"{most} with kernel={config.kernel}"
        )


def _evaluation(
    config: AffinityConfig, images: DenseImages, affinities: dict[str, PixelAffinity], found: AffinityCounts
) -> Evaluation:
    """Correspondence at every dilation: the mean over the pairs as a metric, every pair and measure below."""
    pairs = [f"{first} / {second}" for first, second in found.pairs]
    metrics, values, per_pair = [], {}, {}
    for number, dilation in enumerate(found.dilations):
        column = dict(zip(pairs, _numbers(correspondence(found.table[:, number]))))
        known = [value for value in column.values() if value is not None]
        if known:
            key = f"correspondence_{dilation}"
            metrics.append(Metric(key, f"dilation {dilation}"))
            values[key] = sum(known) / len(known)
            per_pair[key] = {"weights": column}
    for key, measure in _OTHER_MEASURES.items():
        names = [f"{pair}, dilation {dilation}" for pair in pairs for dilation in found.dilations]
        per_pair[key] = {"weights": dict(zip(names, _numbers(measure(found.table).flatten())))}
    rules = {name: {"rule": each.rule, "threshold": each.threshold} for name, each in affinities.items()}
    return Evaluation(
        command="analyse",
        title=f"Correspondence of pixel affinities: {len(found.tasks)} tasks, {found.images} images",
        subject=images.title,
        metrics=metrics,
        values=values,
        per_class=per_pair,
        pictures=[Picture("pictures/affinity.png", "pixel affinities that two tasks share, by dilation")],
        protocol={
            "protocol": "affinity",
            **to_dict(config),
            "tasks": list(found.tasks),
            "similar": rules,
            "images": images.title,
            "split": images.split,
            "images_counted": found.images,
        },
    )


def _numbers(values: Tensor) -> list[float | None]:
    """Plain numbers; None for what is not defined, because there is no pair of that kind."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _table(found: AffinityCounts) -> Table:
    table = Table(title=f"Pairs of pixels that two tasks match, %, by dilation; {found.images} images")
    table.add_column("tasks", no_wrap=True)
    table.add_column("pairs", no_wrap=True)
    for dilation in found.dilations:
        table.add_column(str(dilation), justify="right")
    measures = {
        "mean": correspondence,
        "similar": matched_similar,
        "dissimilar": matched_dissimilar,
    }
    for number, (first, second) in enumerate(found.pairs):
        for row, (label, measure) in enumerate(measures.items()):
            shares = _numbers(measure(found.table[number]))
            texts = ["-" if share is None else f"{100 * share:.0f}" for share in shares]
            pair = f"{first} / {second}" if row == 0 else ""
            table.add_row(pair, label, *texts, end_section=row == len(measures) - 1)
    return table
