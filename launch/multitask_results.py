"""results.json of ``polyscene multitask``: of one run, and of several seeds together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polyscene.downstream.multitask.metric_labels import metric_of
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions
from polyscene.downstream.multitask.published import published_rows
from polyscene.downstream.multitask.summary import make_evaluation, scores_protocol, single_task_results
from polyscene.downstream.multitask.tasks.spec import TaskSpec
from polyscene.runtime.config import to_dict
from polyscene.runtime.results import Evaluation, Metric, Picture, Published, read_results, write_results
from polyscene.runtime.run import RunDirectory

from .multitask_config import MultitaskConfig, single_runs
from .multitask_model import Ingredients

Scores = Mapping[str, Mapping[str, float]]
FRONT_END = "front_end_"
_REPARAMETERIZED = ("rcm", "series_adapters", "parallel_adapters")


@dataclass(frozen=True)
class Comparison:
    """What the results of a run are shown beside.

    Attributes:
        protocol: the choices that decide the scores.
        single: task -> main metric of single-task models, or None.
        published: rows of papers under this protocol.
    """

    protocol: dict[str, Any]
    single: dict[str, float] | None
    published: tuple[Published, ...]


def open_comparison(config: MultitaskConfig, found: Ingredients) -> Comparison:
    """Look up the single-task results and the published rows, before any work.

    Raises:
        UserError: a run of evaluate.single has no results, lacks a task or was measured in another way.
    """
    images, kind = found.val, config.data.kind
    multi_scale = isinstance(found.options, MultiScaleOptions)
    protocol = scores_protocol(
        images,
        kind=kind,
        arch=found.arch,
        multi_scale=multi_scale,
        model_kind=found.options.kind,
        stretch=config.evaluate.stretch,
    )
    runs = [Path(run) for run in single_runs(config)]
    single = single_task_results(runs, images.tasks, protocol) if runs else None
    published = published_rows(kind, len(images), found.arch, images.tasks, images.split, multi_scale=multi_scale)
    return Comparison(protocol, single, published)


def write_run_results(
    config: MultitaskConfig,
    found: Ingredients,
    comparison: Comparison,
    scores: Scores,
    classes: Mapping[str, Mapping[str, float]],
    front_ends: Mapping[int, Scores],
    pictures: Sequence[Picture],
    extra: Mapping[str, Any],
    run: RunDirectory,
) -> None:
    """Write results.json of one seed and print its table.

    Args:
        config: of the run.
        found: what it was made of.
        comparison: what the results are shown beside.
        scores: task -> metric key -> value.
        classes: task -> class -> IoU.
        front_ends: stride -> scores of the first predictions there; empty where they were not judged.
        pictures: that were drawn.
        extra: more entries of the protocol.
        run: where results go.
    """
    further = front_end_metrics(front_ends, found.front_val.tasks) if front_ends else {}
    evaluation = make_evaluation(
        [scores],
        found.val.tasks,
        title=_title(found),
        subject=subject(config, found),
        protocol={**comparison.protocol, "config": to_dict(config), **extra},
        single=comparison.single,
        published=comparison.published,
        class_scores=[classes],
        pictures=pictures,
        more=[metric for metric, _ in further.values()],
        more_values=[{key: value for key, (_, value) in further.items()}],
    )
    _finish(run, evaluation)


def write_seed_results(
    config: MultitaskConfig, found: Ingredients, comparison: Comparison, folders: Sequence[Path], run: RunDirectory
) -> None:
    """Write results.json with mean and standard deviation over the runs of several seeds, and print its table.

    Raises:
        UserError: a seed's results cannot be read.
    """
    parts = [read_results(folder / "results.json") for folder in folders]
    specs = found.val.tasks
    pictures = [
        Picture(f"{folder.name}/{picture.file}", f"seed {seed}: {picture.caption}")
        for seed, folder, part in zip(config.seeds, folders, parts)
        for picture in part.pictures
    ]
    evaluation = make_evaluation(
        [split_scores(part, specs) for part in parts],
        specs,
        title=f"{_title(found)}, {len(parts)} seeds",
        subject=subject(config, found),
        protocol={
            **comparison.protocol,
            "config": to_dict(config),
            "resources": parts[0].protocol.get("resources"),
            "seeds": list(config.seeds),
            "per_seed": [dict(part.values) for part in parts],
        },
        single=comparison.single,
        published=comparison.published,
        class_scores=[_classes(part, specs) for part in parts],
        pictures=[*pictures, *spectrum_pictures(run.path)],
        more=[metric for metric in parts[0].metrics if metric.key.startswith(FRONT_END)],
        more_values=[{k: v for k, v in part.values.items() if k.startswith(FRONT_END)} for part in parts],
    )
    _finish(run, evaluation)


def front_end_metrics(
    front_ends: Mapping[int, Scores], specs: Mapping[str, TaskSpec]
) -> dict[str, tuple[Metric, float]]:
    """Key -> metric and value of the first predictions, the main metric of every task at every scale."""
    found = {}
    for stride, scores in front_ends.items():
        for task, spec in specs.items():
            metric = metric_of(spec, spec.metric)
            key = f"{FRONT_END}{stride}_{metric.key}"
            named = Metric(key, f"first prediction at 1/{stride}, {metric.label}", metric.unit, metric.better)
            found[key] = (named, float(scores[task][spec.metric]))
    return found


def spectrum_pictures(folder: Path) -> list[Picture]:
    """What results.json says of the picture of the response spectrum, where there is one."""
    if not (folder / "pictures" / "spectrum.png").exists():
        return []
    caption = "directions that hold the energy of every layer's responses to the initialisation images"
    return [Picture("pictures/spectrum.png", caption)]


def split_scores(evaluation: Evaluation, specs: Mapping[str, TaskSpec]) -> dict[str, dict[str, float]]:
    """Task -> metric key -> value of the keys ``TASK_METRIC`` of a results.json."""
    scores: dict[str, dict[str, float]] = {task: {} for task in specs}
    for key, value in evaluation.values.items():
        owners = [task for task in specs if key.startswith(f"{task}_") and not key.startswith(FRONT_END)]
        if owners:
            task = max(owners, key=len)  # depth_2_rmse belongs to depth_2, not to depth
            scores[task][key[len(task) + 1 :]] = value
    return scores


def subject(config: MultitaskConfig, found: Ingredients) -> str:
    """The model in words."""
    options, parts = found.options, []
    if isinstance(options, MultiScaleOptions):
        if options.scales != MultiScaleOptions.scales:
            parts.append("scales " + ", ".join(f"1/{stride}" for stride in options.scales))
        if options.kind == "mti_net" and not options.fpm:
            parts.append("without FPM")
        if found.auxiliary:
            parts.append(f"auxiliary {', '.join(found.auxiliary)}")
    elif options.kind == "rcm":
        switches = (("NFF", options.normalized), ("RI", options.response_init))
        parts = [name for name, on in switches if not on]
        parts = [f"without {' and '.join(parts)}"] if parts else []
        if options.rank is not None:
            parts.append(f"rank {options.rank:g}")
    if options.kind in _REPARAMETERIZED and options.reparameterize == "all":
        parts.append("all convolutions")
    if config.balancing.strategy != "fixed" and found.base is None:
        parts.append(f"{config.balancing.strategy} weights")
    start = f"added to {config.model.base}" if found.base is not None else f"{config.weights}"
    return f"{', '.join([options.kind, *parts])}: {found.arch}, {start}"


def _title(found: Ingredients) -> str:
    tasks = ", ".join(found.val.tasks)
    return f"{found.val.title}: {tasks} on {len(found.val):,} images of '{found.val.split}'"


def _classes(evaluation: Evaluation, specs: Mapping[str, TaskSpec]) -> dict[str, Mapping[str, float]]:
    found = {task: evaluation.per_class.get(f"{task}_{spec.metric}") for task, spec in specs.items()}
    return {task: table["weights"] for task, table in found.items() if table}


def _finish(run: RunDirectory, evaluation: Evaluation) -> None:
    file = write_results(run.path, evaluation)
    output = Console(highlight=False)
    for table in (details_table(evaluation), front_end_table(evaluation), main_table(evaluation)):
        if table is not None:
            output.print(table)
    run.log(f"results: '{file}'")


def details_table(evaluation: Evaluation) -> Table:
    """All numbers of a run but those of first predictions, a row a metric."""
    table = Table(title="All metrics", title_justify="left", show_header=False)
    for metric in evaluation.metrics:
        if not metric.key.startswith(FRONT_END):
            table.add_row(metric.label, _shown(evaluation, metric))
    return table


def front_end_table(evaluation: Evaluation) -> Table | None:
    """The first predictions, a row a scale and a column a task (thesis, table 5.3); None where there are none."""
    first = [metric for metric in evaluation.metrics if metric.key.startswith(FRONT_END)]
    if not first:
        return None
    rows: dict[str, dict[str, str]] = {}
    for metric in first:
        scale, _, label = metric.label.partition(", ")
        arrow = "↑" if metric.better == "higher" else "↓"
        rows.setdefault(scale, {})[f"{label.replace(': ', chr(10))} {arrow}"] = _shown(evaluation, metric)
    table = Table(title="First predictions of the front ends", title_justify="left")
    table.add_column("scale")
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for scale, cells in rows.items():
        table.add_row(scale.rpartition(" ")[2], *cells.values())
    return table


def _shown(evaluation: Evaluation, metric: Metric) -> str:
    return metric.show(evaluation.values[metric.key], evaluation.deviation.get(metric.key))


def main_table(evaluation: Evaluation) -> Table:
    """The tasks' main metrics of the run, of its single-task models and of published models, a row a model."""
    protocol = evaluation.protocol
    single = protocol.get("single") or {}
    metrics = evaluation.metrics[: len(protocol["task_protocols"]) + ("delta" in evaluation.values)]
    table = Table(title=evaluation.title, title_justify="left", caption="delta: above 0 is better than single-task")
    table.add_column("model")
    for metric in metrics:
        arrow = "↑" if metric.better == "higher" else "↓"
        table.add_column(f"{heading(metric, protocol['task_protocols'])} {arrow}", justify="right")
    own = [_shown(evaluation, metric) for metric in metrics]
    table.add_row(evaluation.subject, *own, style="bold")
    if single:
        shown = zip(metrics, [*single.values(), None])
        table.add_row("single-task runs", *(metric.show(value) for metric, value in shown))
    for row in evaluation.published:
        table.add_row(f"{row.name}, {row.source}", *(metric.show(row.values.get(metric.key)) for metric in metrics))
    if "delta" not in evaluation.values:
        table.caption = None
    return table


def heading(metric: Metric, tasks: Collection[str]) -> str:
    """A narrow column's head: the task's key above the short name of its metric."""
    owners = [task for task in tasks if metric.key.startswith(f"{task}_")]
    return f"{max(owners, key=len)}\n{metric.label.rpartition(': ')[2]}" if owners else metric.label
