"""``polyscene analyse gradients``: how similar the tasks' gradients are, at every depth of the encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from rich.table import Table
from torch import Tensor

from polyscene.downstream.multitask.analysis.gradients import (
    GradientSimilarity,
    comparable_parameters,
    gradient_similarity,
)
from polyscene.downstream.multitask.analysis.pictures import draw_similarity
from polyscene.downstream.multitask.loading import train_batches
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import World, choose_device
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture
from polyscene.runtime.run import RunDirectory

from .analyse_config import GradientsConfig
from .analyse_run import OpenedRun, chosen_tasks, config_of, finish, open_folder, open_images, open_model
from .multitask_plan import augmentation


def analyse_gradients(config: GradientsConfig) -> int:
    """Measure, draw and write; returns the exit code.

    Raises:
        UserError: a run with fewer than two tasks or nothing trained in its encoder, or wrong data.
    """
    opened = open_model(config.runs[0])
    tasks = chosen_tasks(opened, config.tasks)
    comparable_parameters(opened.saved.model, tasks)
    settings = config_of(opened, config.data)
    images = open_images(settings, settings.data.train, opened, tasks)
    images.read(0)
    device = choose_device(config.device)
    # The crops of training, without what training does to them by chance.
    recipe = replace(augmentation(settings), scales=(1.0,), between=False, degrees=0.0, flip=0.0)
    batches = train_batches(
        images,
        recipe,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        end_step=config.batches,
        workers=config.workers,
        world=World(rank=0, size=1, device=device),
    )
    run = open_folder(config, "gradients")
    if run is None:
        return 0
    run.log(f"gradients of {', '.join(images.tasks)}: {config.batches} minibatches of {config.batch_size} images")
    with ProgressBar(run.console, "gradients", config.batches) as bar:
        found = gradient_similarity(
            opened.saved.model.to(device),
            batches,
            images.tasks,
            device=device,
            precision=config.precision,
            values=config.values,
            chunk=config.chunk,
            seed=config.seed,
            progress=bar.update,
        )
    pictures = _draw(run, found)
    protocol = {
        "protocol": "gradients",
        **to_dict(config),
        "arch": opened.saved.arch,
        "kind": opened.saved.options.kind,
        "gradients_of": f"{found.of} parameters of the encoder",
        "mode": "evaluation",
        "size": list(recipe.size),
        "images": images.title,
        "split": images.split,
    }
    evaluation = _evaluation(opened, found, pictures, protocol)
    finish(run, evaluation, _table(found))
    return 0


def _measures(found: GradientSimilarity) -> list[tuple[str, str, Tensor]]:
    """Key, label and (D, N, N) of what was measured."""
    measures = [("rsa", "RSA", found.rsa)]
    return measures if found.cosine is None else [*measures, ("cosine", "cosine", found.cosine)]


def _draw(run: RunDirectory, found: GradientSimilarity) -> list[Picture]:
    captions = {
        "rsa": "representation similarity of the tasks' gradients, by depth of the encoder",
        "cosine": "mean cosine of two tasks' gradients of the same minibatch, by depth of the encoder",
    }
    pictures = []
    for key, label, matrices in _measures(found):
        name = f"gradients_{key}.png"
        draw_similarity(list(zip(found.depths, matrices)), found.tasks, run.pictures / name, label)
        pictures.append(Picture(f"pictures/{name}", captions[key]))
    return pictures


def _evaluation(
    opened: OpenedRun, found: GradientSimilarity, pictures: list[Picture], protocol: dict[str, object]
) -> Evaluation:
    """Means over the pairs of tasks as metrics, every pair below."""
    pairs = list(combinations(range(len(found.tasks)), 2))
    metrics, values, per_pair = [], {}, {}
    for key, label, matrices in _measures(found):
        for depth, matrix in zip(found.depths, matrices):
            name = f"{key}_{depth}"
            numbers = {f"{found.tasks[i]} / {found.tasks[j]}": float(matrix[i, j]) for i, j in pairs}
            metrics.append(Metric(name, f"{label} {depth}", unit=""))
            values[name] = sum(numbers.values()) / len(numbers)
            per_pair[name] = {"weights": numbers}
    return Evaluation(
        command="analyse",
        title=f"Similarity of task gradients: {len(found.tasks)} tasks, {found.batches} minibatches",
        subject=opened.name,
        metrics=metrics,
        values=values,
        per_class=per_pair,
        pictures=pictures,
        protocol=protocol,
    )


def _table(found: GradientSimilarity) -> Table:
    table = Table(title=f"Similarity of the gradients of {found.of} parameters, {found.batches} minibatches")
    table.add_column("tasks")
    table.add_column("measure")
    for depth in found.depths:
        table.add_column(depth, justify="right")
    for _, label, matrices in _measures(found):
        for i, j in combinations(range(len(found.tasks)), 2):
            numbers = [f"{float(matrix[i, j]):.2f}" for matrix in matrices]
            table.add_row(f"{found.tasks[i]} / {found.tasks[j]}", label, *numbers)
    return table
