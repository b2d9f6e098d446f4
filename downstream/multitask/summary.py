"""results.json of a multi-task run: means over seeds, Delta_MTL against single-task runs, published rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, Picture, Published, read_results

from .data.records import DenseImages
from .metric_labels import DELTA, metric_of
from .metrics.delta import delta_mtl
from .tasks.spec import TaskSpec

# Runs whose results differ in one of these are not compared.
_COMPARED = ("dataset", "split", "images", "stretch", "arch", "multi_scale")

Scores = Mapping[str, Mapping[str, float]]


def scores_protocol(
    images: DenseImages,
    *,
    kind: str,
    arch: str,
    model_kind: str,
    multi_scale: bool = False,
    stretch: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The choices that decide the scores, as entries of results.json's ``protocol``; plain values.

    Args:
        images: the evaluated split with the evaluated tasks.
        kind: of the data set, such as ``nyud``.
        arch: backbone.
        multi_scale: whether the backbone has four scales (a feature pyramid, or HRNet).
        model_kind: such as ``rcm``; ``single`` may be referred to by `single_task_results`.
        stretch: (height, width) that images were stretched to; None: native, padded.
    """
    return {
        "dataset": kind,
        "split": images.split,
        "images": len(images),
        "stretch": None if stretch is None else list(stretch),
        "arch": arch,
        "multi_scale": multi_scale,
        "model_kind": model_kind,
        "task_protocols": {name: dict(spec.protocol) for name, spec in images.tasks.items()},
    }


def make_evaluation(
    scores: Sequence[Scores],
    specs: Mapping[str, TaskSpec],
    *,
    title: str,
    subject: str,
    protocol: Mapping[str, Any],
    single: Mapping[str, float] | None = None,
    published: Sequence[Published] = (),
    class_scores: Sequence[Mapping[str, Mapping[str, float]]] = (),
    pictures: Sequence[Picture] = (),
    more: Sequence[Metric] = (),
    more_values: Sequence[Mapping[str, float]] = (),
    command: str = "multitask",
) -> Evaluation:
    """Put a run's scores together: the main metric of every task, ``delta``, then all others.

    Keys are ``TASK_METRIC``. Over several seeds, values are means and ``deviation`` the standard deviation (n - 1).
    Numbers that are not finite (nothing to average over) are left out.

    Args:
        scores: for every seed, task -> metric key -> value, what the metrics of `evaluation.measure` compute.
        specs: the tasks in their order.
        title: one line: what was measured, on how much data.
        subject: the model, in words.
        protocol: `scores_protocol` and whatever else decides the numbers.
        single: task -> main metric of single-task models, for ``delta`` (a share, above 0 is better); None: unknown.
        published: rows of papers, see `published.published_rows`.
        class_scores: for every seed, task -> class -> IoU (`evaluation.class_scores`); means are kept.
        pictures: pictures beside results.json.
        more: further metrics, at the end.
        more_values: for every seed, their values by key.
        command: the command that made it.

    Raises:
        UserError: a task's main metric has no value, or a single-task result is missing.
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores to put together")
    for task, spec in specs.items():
        if not all(math.isfinite(one[task][spec.metric]) for one in scores):
            raise UserError(
                f"task '{task}' has no {spec.metric}: no valid pixel in the evaluated images; check the data"
            )
    main = [metric_of(spec, spec.metric) for spec in specs.values()]
    others = [metric_of(spec, key) for task, spec in specs.items() for key in scores[0][task] if key != spec.metric]
    per_seed = [_flat(one, specs) for one in scores]
    if single is not None:
        for values, one in zip(per_seed, scores):
            values[DELTA.key] = _delta(one, specs, single)
        main.append(DELTA)
    for values, further in zip(per_seed, more_values):
        values.update(further)
    metrics = [
        m for m in (*main, *others, *more) if all(math.isfinite(values.get(m.key, math.nan)) for values in per_seed)
    ]
    columns = {metric.key: [values[metric.key] for values in per_seed] for metric in metrics}
    return Evaluation(
        command=command,
        title=title,
        subject=subject,
        metrics=metrics,
        values={key: statistics.fmean(column) for key, column in columns.items()},
        deviation={key: statistics.stdev(column) for key, column in columns.items()} if len(scores) > 1 else {},
        per_class=_class_means(class_scores, specs),
        published=list(published),
        pictures=list(pictures),
        protocol={**protocol, "single": dict(single) if single is not None else None},
    )


def single_task_results(
    runs: Sequence[Path], specs: Mapping[str, TaskSpec], protocol: Mapping[str, Any]
) -> dict[str, float]:
    """Task -> main metric of its single-task model, looked up in the results.json of runs.

    Args:
        runs: run directories; together they have all tasks.
        specs: the tasks wanted.
        protocol: of the run that is to be compared (`scores_protocol`): data, backbone and the task's own choices must
            agree.

    Raises:
        UserError: a run has no results, is not of single-task models, or was measured in another way; a task is in two
            runs or in none.
    """
    found: dict[str, tuple[float, Path]] = {}
    for run in runs:
        evaluation = read_results(Path(run) / "results.json")
        theirs = evaluation.protocol
        for task, spec in specs.items():
            key = f"{task}_{spec.metric}"
            if key not in evaluation.values:
                continue
            _check_comparable(Path(run), task, theirs, protocol)
            if task in found:
                raise UserError(f"'{found[task][1]}' and '{run}' both have single-task results of '{task}'; name one")
            found[task] = (float(evaluation.values[key]), Path(run))
    missing = [task for task in specs if task not in found]
    if missing:
        named = ", ".join(f"'{run}'" for run in runs) or "no run"
        raise UserError(f"no single-task result of '{missing[0]}' in {named}; train it with model.kind=single")
    return {task: found[task][0] for task in specs}


def _check_comparable(run: Path, task: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if theirs.get("model_kind") != "single":
        raise UserError(
            f"'{run}' holds a model of kind '{theirs.get('model_kind')}'; Delta needs results of model.kind=single"
        )
    for key in _COMPARED:
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"'{run}' was measured with {key} = {theirs.get(key)}, this run with {ours.get(key)}; "
                "compare runs of one protocol"
            )
    their_task, our_task = (side.get("task_protocols", {}).get(task) for side in (theirs, ours))
    if their_task != our_task:
        raise UserError(
            f"'{run}' judges '{task}' by {their_task}, this run by {our_task}; compare runs of one protocol"
        )


def _flat(scores: Scores, specs: Mapping[str, TaskSpec]) -> dict[str, float]:
    return {f"{task}_{key}": float(value) for task in specs for key, value in scores[task].items()}


def _delta(scores: Scores, specs: Mapping[str, TaskSpec], single: Mapping[str, float]) -> float:
    better = {task: "higher" if spec.higher_is_better else "lower" for task, spec in specs.items()}
    try:
        return delta_mtl({task: scores[task][spec.metric] for task, spec in specs.items()}, single, better)
    except ValueError as error:
        raise UserError(f"Delta cannot be computed: {error}; leave evaluate.single out or name other runs") from error


def _class_means(
    class_scores: Sequence[Mapping[str, Mapping[str, float]]], specs: Mapping[str, TaskSpec]
) -> dict[str, dict[str, dict[str, float]]]:
    """Metric key -> ``weights`` -> class -> mean over the seeds in which it occurs."""
    found = {}
    for task, spec in specs.items():
        tables = [one[task] for one in class_scores if one.get(task)]
        if tables:
            labels = dict.fromkeys(label for table in tables for label in table)
            means = {label: statistics.fmean(t[label] for t in tables if label in t) for label in labels}
            found[f"{task}_{spec.metric}"] = {"weights": means}
    return found
