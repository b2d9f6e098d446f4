"""Evaluations of one kind side by side: what may be compared is, and what differs is said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from polyscene.runtime.results import Evaluation, Metric

from .protocols import arch_of, decisive, differing_keys, incidental, protocol_name
from .runs import EvaluationRun


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        text: as people read it.
        value: the number, None if it is absent.
        best: whether it is the best of the rows measured here.
        share: length of its bar in 0..1, None for no bar.
    """

    text: str
    value: float | None
    best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a comparison.

    Attributes:
        kind: ``measured``, ``random``, ``chance`` or ``published``.
        name: the backbone.
        note: the run, or the source of a published row.
        run: the run of a measured row, else None.
        cells: a cell per metric.
        difference: main metric minus the same run's random baseline, in words; empty if unknown.
        better: whether that difference is an improvement; None if unknown or nil.
    """

    kind: str
    name: str
    note: str
    run: EvaluationRun | None
    cells: Sequence[Cell]
    difference: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Block:
    """Rows of one protocol.

    Attributes:
        heading: what sets it apart from the group's other blocks; empty if there is one block only.
        rows: measured, random, chance, published.
        runs: the runs of the block.
        shared_title: the title that all its evaluations have, or empty.
    """

    heading: str
    rows: Sequence[Row]
    runs: Sequence[EvaluationRun]
    shared_title: str


@dataclass(frozen=True)
class Group:
    """All evaluations of one command and protocol.

    Attributes:
        command: such as ``retrieve``.
        protocol: such as ``kmeans``; empty if the command has one protocol only.
        metrics: columns.
        blocks: one per set of protocol values.
        differing: (key, the value of each block) where blocks differ.
        minor: the same for what may differ, with the distinct values.
    """

    command: str
    protocol: str
    metrics: Sequence[Metric]
    blocks: Sequence[Block]
    differing: Sequence[tuple[str, Sequence[str]]]
    minor: Sequence[tuple[str, Sequence[str]]]

    @property
    def runs(self) -> list[EvaluationRun]:
        """The runs of all blocks."""
        return [run for block in self.blocks for run in block.runs]


def group_evaluations(runs: Iterable[EvaluationRun]) -> list[Group]:
    """Finished evaluations by command and protocol, in the order in which they were named."""
    found: dict[tuple[str, str], list[EvaluationRun]] = {}
    for run in runs:
        if run.evaluation is not None:
            found.setdefault((run.evaluation.command, protocol_name(run.evaluation)), []).append(run)
    return [_group(command, protocol, members) for (command, protocol), members in found.items()]


def show_difference(metric: Metric, value: float | None, base: float | None) -> tuple[str, bool | None]:
    """How far a value is from its baseline, in words, and whether that is better."""
    if value is None or base is None:
        return "", None
    gap = value - base
    text = f"{100 * gap:+.1f} points" if metric.unit == "%" else f"{gap:+.3f} {metric.unit}".strip()
    better = None if gap == 0 else (gap > 0) == (metric.better == "higher")
    return text.replace("-", "−"), better


def _group(command: str, protocol: str, runs: Sequence[EvaluationRun]) -> Group:
    variants: dict[str, list[EvaluationRun]] = {}
    for run in runs:
        variants.setdefault(json.dumps(decisive(run.evaluation.protocol), sort_keys=True), []).append(run)
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.evaluation.metrics))
    differing = differing_keys([json.loads(variant) for variant in variants])
    given = [incidental(run.evaluation.protocol) for run in runs]
    # A path that only some runs have already sets them apart.
    minor = [(key, values) for key, values in differing_keys(given) if all(key in one for one in given)]
    blocks = []
    for i, members in enumerate(variants.values()):
        heading = ", ".join(f"{key} = {_short(values[i])}" for key, values in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        blocks.append(_block(heading + more, members, metrics))
    distinct = [(key, list(dict.fromkeys(values))) for key, values in minor]
    return Group(command, protocol, metrics, blocks, differing, distinct)


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _block(heading: str, runs: Sequence[EvaluationRun], metrics: Sequence[Metric]) -> Block:
    rows = [_measured(run, metrics) for run in runs]
    rows += _baselines(runs, metrics)
    rows += _chances(runs, metrics)
    rows += _published(runs, metrics)
    rows = _with_bars(_with_best(rows, metrics))
    titles = {run.evaluation.title for run in runs}
    return Block(heading, rows, runs, titles.pop() if len(titles) == 1 else "")


def _row(
    kind: str,
    name: str,
    note: str,
    values: Mapping[Metric, float | None],
    metrics: Sequence[Metric],
    run: EvaluationRun | None = None,
    spread: Mapping[Metric, float | None] | None = None,
) -> Row:
    spread = spread or {}
    cells = [Cell(show_value(m, values.get(m), spread.get(m)), values.get(m)) for m in metrics]
    return Row(kind, name, note, run, cells)


def _of_metrics(evaluation: Evaluation, values: Mapping[str, float | None]) -> dict[Metric, float | None]:
    """Values by metric instead of key: under another label, a key is another measurement."""
    return {metric: values.get(metric.key) for metric in evaluation.metrics}


def show_value(metric: Metric, value: float | None, deviation: float | None = None) -> str:
    """The value as people read it, with a true minus sign; a dash for a number that is absent."""
    return "–" if value is None else metric.show(value, deviation).replace("-", "−")


def _measured(run: EvaluationRun, metrics: Sequence[Metric]) -> Row:
    evaluation = run.evaluation
    values, spread = (_of_metrics(evaluation, table) for table in (evaluation.values, evaluation.deviation))
    row = _row("measured", evaluation.subject, run.name, values, metrics, run, spread)
    base = next(iter(evaluation.baseline.values()), None)
    if not evaluation.metrics or base is None:
        return row
    main = evaluation.metrics[0]
    text, better = show_difference(main, evaluation.values[main.key], base.get(main.key))
    return replace(row, difference=text, better=better)


def _baselines(runs: Sequence[EvaluationRun], metrics: Sequence[Metric]) -> list[Row]:
    """Baseline rows; runs that found the same numbers for the same architecture share one."""
    shared: dict[tuple, list[str]] = {}
    for run in runs:
        for name, values in run.evaluation.baseline.items():
            known = tuple(_of_metrics(run.evaluation, values).items())
            shared.setdefault((name, arch_of(run.evaluation), known), []).append(run.name)
    rows = []
    for (name, arch, known), names in shared.items():
        title = f"{arch}, {name} initialisation" if arch else f"{name} initialisation"
        note = "untrained weights, same measurement" if len(shared) == 1 else f"beside {', '.join(names)}"
        rows.append(_row("random", title, note, dict(known), metrics))
    return rows


def _chances(runs: Sequence[EvaluationRun], metrics: Sequence[Metric]) -> list[Row]:
    shared: dict[tuple, tuple[dict, list[str]]] = {}
    for run in runs:
        known = _of_metrics(run.evaluation, run.evaluation.chance)
        if any(value is not None for value in known.values()):
            # Odds that look the same to a reader are one row.
            shown = tuple((metric, show_value(metric, value)) for metric, value in known.items())
            shared.setdefault(shown, (known, []))[1].append(run.name)
    return [
        _row("chance", "chance", "guessing" if len(shared) == 1 else f"for {', '.join(names)}", known, metrics)
        for known, names in shared.values()
    ]


def _published(runs: Sequence[EvaluationRun], metrics: Sequence[Metric]) -> list[Row]:
    found: dict[tuple, dict[Metric, float | None]] = {}
    for run in runs:
        for row in run.evaluation.published:
            values = _of_metrics(run.evaluation, row.values)
            if any(value is not None for value in values.values()):
                found.setdefault((row.name, row.source), {}).update(values)
    return [_row("published", name, source, values, metrics) for (name, source), values in found.items()]


def _with_best(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Row]:
    """Mark the best of what was measured here in each column, where there is something to choose from."""
    best: dict[int, float] = {}
    for i, metric in enumerate(metrics):
        ours = [row.cells[i].value for row in rows if row.kind in ("measured", "random")]
        known = [value for value in ours if value is not None]
        if len(known) > 1 and len(set(known)) > 1:
            best[i] = max(known) if metric.better == "higher" else min(known)

    def mark(row: Row) -> Row:
        if row.kind not in ("measured", "random"):
            return row
        return replace(row, cells=[replace(c, best=i in best and c.value == best[i]) for i, c in enumerate(row.cells)])

    return [mark(row) for row in rows]


def _with_bars(rows: Sequence[Row]) -> list[Row]:
    """Bars under the numbers of the first column, from zero to the largest of them; none below zero."""
    values = [row.cells[0].value for row in rows if row.cells and row.cells[0].value is not None]
    if len(values) < 2 or min(values) < 0 or max(values) == 0:
        return list(rows)
    top = max(values)

    def draw(row: Row) -> Row:
        first = row.cells[0]
        if first.value is None:
            return row
        return replace(row, cells=[replace(first, share=first.value / top), *row.cells[1:]])

    return [draw(row) for row in rows]
