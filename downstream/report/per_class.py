"""Numbers a class of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyscene.runtime.results import Metric

from .comparison import Block, Group, show_difference, show_value


@dataclass(frozen=True)
class ClassTable:
    """One metric, a row a class.

    Attributes:
        title: metric, and the protocol block where there are several.
        columns: (what, run) of each column; run is empty for a baseline that all runs share.
        rows: class, and its texts.
        has_difference: whether the last column is measured minus random.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[str]]]
    has_difference: bool


def class_tables(group: Group, subjects: Mapping[str, str]) -> list[ClassTable]:
    """The tables of all blocks of a group.

    Args:
        group: evaluations of one kind.
        subjects: name of a run -> name of its backbone.
    """
    tables = []
    for block in group.blocks:
        keys = dict.fromkeys(key for run in block.runs for key in run.evaluation.per_class)
        for key in keys:
            metric = next((m for run in block.runs for m in run.evaluation.metrics if m.key == key), Metric(key, key))
            tables.append(_table(block, metric, subjects))
    return [table for table in tables if table.rows]


def _table(block: Block, metric: Metric, subjects: Mapping[str, str]) -> ClassTable:
    columns: list[tuple[str, str, Mapping[str, float | None]]] = []
    for run in block.runs:
        for name, values in run.evaluation.per_class.get(metric.key, {}).items():
            if name == "weights":
                columns.append((subjects[run.name], run.name, values))
                continue
            same = next((i for i, column in enumerate(columns) if column[0] == name and column[2] == values), None)
            if same is None:
                columns.append((name, run.name, values))
            else:
                columns[same] = (name, "", values)
    classes = dict.fromkeys(label for *_, values in columns for label in values)
    difference = len(columns) == 2 and len(block.runs) == 1
    rows = []
    for label in classes:
        values = [column[2].get(label) for column in columns]
        texts = [show_value(metric, value) for value in values]
        if difference:
            texts.append(show_difference(metric, *values)[0].replace(" points", "") or "–")
        rows.append((label, texts))
    title = f"{metric.label} per class" + (f" ({block.heading})" if block.heading else "")
    return ClassTable(title, [(name, run) for name, run, _ in columns], rows, difference)
