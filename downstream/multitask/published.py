"""Published rows for the protocols of multi-task runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyscene.runtime.results import Published

from .data.opening import PUBLISHED_COUNTS
from .published_tables import TABLES, Table
from .tasks.spec import TaskSpec


def published_rows(
    dataset: str,
    images: int,
    arch: str,
    specs: Mapping[str, TaskSpec],
    split: str = "val",
    *,
    multi_scale: bool = False,
) -> tuple[Published, ...]:
    """Rows of papers whose scores a run's may be compared with; shares where results.json has shares.

    Only for the whole published split and the same backbone. Tasks that are judged in another way are left out, and
    ``delta`` (above 0: better than single-task models) where the run and the row are not of the same tasks.

    Args:
        dataset: kind of the data set, such as ``nyud``.
        images: in the evaluated split.
        arch: backbone.
        specs: task -> what it is, of the run.
        split: that was evaluated.
        multi_scale: whether the backbone has four scales: an HRNet, or a ResNet with a feature pyramid.
    """
    if images != PUBLISHED_COUNTS.get(dataset, {}).get(split):
        return ()
    found = []
    for table in TABLES:
        if (table.dataset, table.arch, table.multi_scale) != (dataset, arch, multi_scale):
            continue
        for name, *numbers, printed in table.rows:
            values = _values(table, numbers, printed, specs)
            if values:
                found.append(Published(name, table.source, {key: round(v, 6) for key, v in values.items()}))
    return tuple(found)


def _values(
    table: Table, numbers: list[float | None], printed: float | None, specs: Mapping[str, TaskSpec]
) -> dict[str, float]:
    """Key of results.json -> value, of what a row and a run have in common."""
    alike = {task for task, column in table.columns.items() if _same(specs.get(task), *column)}
    row = dict(zip(table.columns, numbers))
    values = {
        f"{task}_{spec.metric}": row[task] / (100 if spec.unit == "%" else 1)
        for task, spec in specs.items()
        if task in alike and row[task] is not None
    }
    if len(alike) == len(table.columns):
        values |= dict(zip(table.more, numbers[len(row) :]))
    # The tasks of the row: all of the table where it states nothing but their mean change.
    judged = {task for task, number in row.items() if number is not None} or set(row)
    if printed is not None and judged == set(specs) and judged <= alike:
        values["delta"] = (printed if table.gains else -printed) / 100
    return values


def _same(spec: TaskSpec | None, metric: str, protocol: Mapping[str, Any]) -> bool:
    """Whether a task of a run is judged as in a table."""
    if spec is None or spec.metric != metric:
        return False
    return all(spec.protocol.get(key) == value for key, value in protocol.items())
