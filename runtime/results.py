"""results.json of an evaluation: its numbers, those of the random baseline and the published ones of its protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from .errors import UserError
from .files import write_text
from .run import environment

_RESERVED = {
    "command", "title", "metrics", "baseline", "chance", "per_class", "published", "pictures", "protocol", "deviation",
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """What a number is.

    Args:
        key: its name in results.json.
        label: its name for people.
        unit: ``%`` for a share in [0, 1] that is shown times 100; anything else is shown after the number.
        better: ``higher`` or ``lower``.
    """

    key: str
    label: str
    unit: str = "%"
    better: str = "higher"

    def show(self, value: float | None, deviation: float | None = None) -> str:
        """The value as people read it: ``41.8%``, ``0.583 m``, or a dash for a number that is absent.

        With a standard deviation, ``41.8 ± 0.4%`` or ``0.583 ± 0.004 m``.
        """
        if value is None:
            return "-"
        factor, digits, unit = (100, 1, "%") if self.unit == "%" else (1, 3, f" {self.unit}" if self.unit else "")
        spread = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
        return f"{factor * value:.{digits}f}{spread}{unit}"


@dataclass(frozen=True)
class Published:
    """A row of a paper's table under the same protocol.

    Args:
        name: the model, as the table calls it.
        source: paper and table.
        values: metric key -> value, in the unit of results.json.
    """

    name: str
    source: str
    values: dict[str, float]


@dataclass(frozen=True)
class Picture:
    """A picture beside results.json.

    Args:
        file: path relative to the run directory.
        caption: what it shows.
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation found.

    Args:
        command: the command that made it, such as ``retrieve``.
        title: one line for a table's head: what was measured, on how much data.
        subject: the measured backbone, in words.
        metrics: what the numbers are, the main one first.
        values: metric key -> value of the measured backbone.
        baseline: name (``random``) -> values of that backbone; empty where it was switched off.
        chance: metric key -> value of guessing, where that is known.
        per_class: metric key -> ``weights`` or a baseline's name -> class -> value.
        published: rows of papers under this protocol.
        pictures: pictures beside results.json.
        protocol: every choice that decides the numbers.
        deviation: metric key -> standard deviation (n - 1) of ``values`` over several seeds, whose means these are;
            empty for a single run.
    """

    command: str
    title: str
    subject: str
    metrics: Sequence[Metric]
    values: Mapping[str, float]
    baseline: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    published: Sequence[Published] = ()
    pictures: Sequence[Picture] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    deviation: Mapping[str, float] = field(default_factory=dict)


def write_results(folder: Path, evaluation: Evaluation) -> Path:
    """Write ``results.json`` atomically; metric values lie at its top level. Returns the file.

    Raises:
        ValueError: a metric without value, or a metric named like another entry of the file.
    """
    keys = [metric.key for metric in evaluation.metrics]
    if set(keys) != set(evaluation.values) or _RESERVED & set(keys):
        raise ValueError(f"metrics {keys} do not match the values {list(evaluation.values)}")
    document = asdict(evaluation)
    values = document.pop("values")
    document = {"command": document.pop("command"), "title": document.pop("title"), **values, **document}
    document["environment"] = environment()
    path = folder / "results.json"
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
    return path


def read_results(path: Path) -> Evaluation:
    """Read a ``results.json`` back.

    Raises:
        UserError: the file is missing, damaged, or was not written by :func:`write_results`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        metrics = [Metric(**entry) for entry in document["metrics"]]
        return Evaluation(
            command=document["command"],
            title=document["title"],
            subject=document["subject"],
            metrics=metrics,
            values={metric.key: float(document[metric.key]) for metric in metrics},
            baseline=document["baseline"],
            chance=document["chance"],
            per_class=document["per_class"],
            published=[Published(**entry) for entry in document["published"]],
            pictures=[Picture(**entry) for entry in document["pictures"]],
            protocol=document["protocol"],
            deviation=document.get("deviation", {}),  # absent from files of older versions
        )
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; run the evaluation again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not a results file of an evaluation; run it again with overwrite=true") from error


def results_table(evaluation: Evaluation) -> Table:
    """The measured backbone, its baselines, chance and the published rows, a column a metric."""
    table = Table(title=evaluation.title, min_width=len(evaluation.title))  # else a title is broken into lines
    table.add_column("backbone")
    for metric in evaluation.metrics:
        table.add_column(metric.label, justify="right")
    rows = [(evaluation.subject, evaluation.values)]
    rows += [(f"{name} initialisation", values) for name, values in evaluation.baseline.items()]
    if evaluation.chance:
        rows.append(("chance", evaluation.chance))
    rows += [(f"{row.name} ({row.source})", row.values) for row in evaluation.published]
    for name, values in rows:
        spread = evaluation.deviation if values is evaluation.values else {}
        table.add_row(name, *(m.show(values.get(m.key), spread.get(m.key)) for m in evaluation.metrics))
    return table


def per_class_table(evaluation: Evaluation, key: str) -> Table:
    """One row a class of the metric ``key``: the measured backbone and its baselines side by side."""
    metric = next(metric for metric in evaluation.metrics if metric.key == key)
    columns = evaluation.per_class[key]
    table = Table(title=f"{metric.label} per class")
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right")
    for label in next(iter(columns.values())):
        table.add_row(label, *(metric.show(values.get(label)) for values in columns.values()))
    return table
