"""The results of several runs side by side: the keys in which they differ, and their main numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyscene.runtime.config import config_values, flatten, parse_words, yaml_word
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, read_results
from polyscene.runtime.run import read_run_config

from .listing import Column
from .run_overview import RunOverview

_MOST_KEYS = 8
_MOST_METRICS = 6
# Keys that say where a run is, not what it computes.
_NO_SWEEP = ("out", "overwrite")
# Of a training without results.json, in this order where they are logged.
_TRAINING = (Metric("loss", "loss", unit="", better="lower"), Metric("knn_accuracy", "kNN accuracy"))


@dataclass(frozen=True)
class ResultsTable:
    """The runs of one command.

    Attributes:
        command: such as ``pretrain``.
        columns: run, keys that differ, state, step, metrics.
        rows: one a run, as text.
    """

    command: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def results_tables(runs: Sequence[RunOverview], names: Sequence[str]) -> list[ResultsTable]:
    """A table for each command among the runs.

    Args:
        runs: in the order of the rows.
        names: of the runs, for the first column.
    """
    grouped: dict[str, list[tuple[str, RunOverview]]] = {}
    results = {run.path: _results(run) for run in runs}
    configs = {run.path: _config(run) for run in runs}
    for name, run in zip(names, runs):
        command = _command(run, results[run.path], configs[run.path])
        grouped.setdefault(command, []).append((name, run))
    tables = []
    for command, members in grouped.items():
        keys = differing_keys([configs[run.path] for _, run in members])
        metrics = _metrics([run for _, run in members], results)
        columns = [
            Column("run"),
            *(Column(key, right=True) for key in keys),
            Column("state"),
            Column("step", right=True),
            *(Column(metric.label, right=True) for metric in metrics),
        ]
        rows = []
        for name, run in members:
            values = configs[run.path]
            swept = [yaml_word(values[key]) if key in values else "" for key in keys]
            step = run.progress.step
            numbers = [_show(metric, run, results[run.path]) for metric in metrics]
            rows.append([name, *swept, run.state, "" if step is None else str(step), *numbers])
        tables.append(ResultsTable(command, columns, rows))
    return tables


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys whose values are not the same in all configs that have them, at most 8.

    Keys that some config lacks do not count: a run that has not started has no defaults written yet.
    """
    found = []
    for key in dict.fromkeys(key for values in configs for key in values):
        seen = {yaml_word(values[key]) for values in configs if key in values}
        if len(seen) > 1 and key not in _NO_SWEEP:
            found.append(key)
    return found[:_MOST_KEYS]


def _config(run: RunOverview) -> dict[str, Any]:
    """The flat config of a run: as it was written, or as its command line means it before the start."""
    try:
        return dict(flatten(read_run_config(run.path)))
    except (UserError, RecursionError):
        pass
    words = run.record.command[1:] if run.record is not None else []
    settings = [word for word in words if "=" in word]
    try:
        named = [word for word in words if "=" not in word]
        return dict(flatten(config_values(named[0], settings) if named else parse_words(settings)))
    except UserError:
        return {}


def _results(run: RunOverview) -> Evaluation | None:
    try:
        return read_results(run.path / "results.json")
    except (UserError, RecursionError):
        return None


def _command(run: RunOverview, results: Evaluation | None, config: Mapping[str, Any]) -> str:
    if run.record is not None and run.record.command:
        return run.record.command[0]
    if results is not None:
        return results.command
    keys = {key.partition(".")[0] for key in config}
    if "views" in keys:
        return "pretrain"
    return "multitask" if keys & {"task", "tasks"} else "evaluation"


def _metrics(runs: Sequence[RunOverview], results: Mapping[Any, Evaluation | None]) -> list[Metric]:
    """The first metrics of their results, which are the main ones; without any, what the trainings logged."""
    found: dict[str, Metric] = {}
    for run in runs:
        evaluation = results[run.path]
        for metric in evaluation.metrics if evaluation is not None else ():
            found.setdefault(metric.key, metric)
    if found:
        return list(found.values())[:_MOST_METRICS]
    logged = {name for run in runs for name in run.progress.metrics}
    return [metric for metric in _TRAINING if metric.key in logged]


def _show(metric: Metric, run: RunOverview, results: Evaluation | None) -> str:
    if results is not None:
        value, deviation = results.values.get(metric.key), results.deviation.get(metric.key)
    else:
        value, deviation = run.progress.metrics.get(metric.key), None
    return "" if value is None else metric.show(value, deviation)
