"""Published rows for the protocols of multi-task runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from polyscene.runtime.results import Published

from .data.opening import PUBLISHED_COUNTS
from .tasks.spec import TaskSpec


class _Table(NamedTuple):
    """A table of a paper.

    Attributes:
        source: paper and table.
        dataset: kind of the data set.
        arch: backbone.
        columns: task -> (metric, the choices its score depends on).
        rows: model, then the numbers of the columns (None: not in the table), then the mean drop in percent or None.
    """

    source: str
    dataset: str
    arch: str
    columns: dict[str, tuple[str, dict[str, Any]]]
    rows: tuple[tuple[Any, ...], ...]


_RCM_PASCAL_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "edges": ("odsf", {"max_distance": 0.0075}),
    "segmentation": ("miou", {"classes": 21}),
    "parts": ("miou", {"classes": 7}),
    "normals": ("mean", {}),
    "saliency": ("iou", {"saliency": "rcm"}),
}
_TABLES = (
    _Table(
        "RCM (ECCV 2020), table 4",
        "nyud",
        "resnet18",
        {
            "edges": ("odsf", {"max_distance": 0.011}),
            "segmentation": ("miou", {}),
            "normals": ("mean", {}),
            "depth": ("rmse", {"depth": "rcm"}),
        },
        (
            ("single-task", 68.83, 35.45, 22.20, 0.56, None),
            ("Series RA", 67.56, 31.87, 23.35, 0.60, 5.88),
            ("Parallel RA", 68.02, 32.13, 23.20, 0.59, 5.02),
            ("RCM", 68.44, 34.20, 22.41, 0.57, 1.48),
        ),
    ),
    _Table(
        "RCM (ECCV 2020), tables 1-3",
        "pascal",
        "resnet18",
        _RCM_PASCAL_COLUMNS,
        (
            ("single-task", 71.88, 66.22, 59.69, 13.64, 66.62, None),
            ("multi-task", 70.74, 62.43, 57.89, 14.43, 66.31, 3.32),
            ("frozen encoder", 67.32, 60.37, 47.86, 17.40, 58.39, 14.98),
            ("task-specific BNs", 69.80, 63.93, 53.22, 14.78, 64.44, 5.76),
            ("task-specific convolutions", 71.72, 66.00, 59.05, 13.78, 66.31, 0.62),
            ("Series RA", 70.62, 65.99, 55.32, 14.27, 66.08, 2.97),
            ("Parallel RA", 70.84, 66.51, 56.56, 14.16, 66.36, 2.09),
            ("RC", 71.10, 64.56, 56.87, 13.91, 66.37, 2.13),
            ("RC + NFF", 71.12, 64.71, 56.91, 13.90, 66.33, 2.07),
            ("RC + RI", 71.36, 65.58, 57.99, 13.70, 66.21, 1.12),
            ("RCM", 71.34, 65.70, 58.12, 13.70, 66.38, 0.99),
        ),
    ),
    _Table(
        "thesis table 7.10",
        "nyud",
        "resnet50",
        {"segmentation": ("miou", {"classes": 40}), "depth": ("rmse", {"depth": "survey"})},
        (
            ("single-task, supervised", 43.6, 0.599, None),
            ("single-task, MoCo", 44.7, 0.590, None),
            ("multi-task, supervised", 43.7, 0.593, None),
            ("multi-task, MoCo", 45.2, 0.581, None),
        ),
    ),
)


def published_rows(
    dataset: str, images: int, arch: str, specs: Mapping[str, TaskSpec], split: str = "val"
) -> tuple[Published, ...]:
    """Rows of papers whose scores a run's may be compared with; shares where results.json has shares.

    Only for the whole published split and the same backbone. Tasks that are judged in another way are left out, and
    ``delta`` (the negative of the printed drop) where not all tasks of the table are compared.

    Args:
        dataset: kind of the data set, such as ``nyud``.
        images: in the evaluated split.
        arch: backbone.
        specs: task -> what it is, of the run.
        split: that was evaluated.
    """
    if images != PUBLISHED_COUNTS.get(dataset, {}).get(split):
        return ()
    found = []
    for table in _TABLES:
        if (table.dataset, table.arch) != (dataset, arch):
            continue
        shared = [task for task, column in table.columns.items() if _same(specs.get(task), *column)]
        places = {task: place for place, task in enumerate(table.columns)}
        for name, *numbers, drop in table.rows:
            values = {
                f"{task}_{specs[task].metric}": numbers[places[task]] / (100 if specs[task].unit == "%" else 1)
                for task in specs
                if task in shared
            }
            if drop is not None and len(shared) == len(table.columns) == len(specs):
                values["delta"] = -drop / 100
            if values:
                found.append(Published(name, table.source, {key: round(v, 6) for key, v in values.items()}))
    return tuple(found)


def _same(spec: TaskSpec | None, metric: str, protocol: Mapping[str, Any]) -> bool:
    """Whether a task of a run is judged as in a table."""
    if spec is None or spec.metric != metric:
        return False
    return all(spec.protocol.get(key) == value for key, value in protocol.items())
