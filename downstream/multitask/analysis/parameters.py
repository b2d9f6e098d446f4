"""How a model grows with its tasks, counted in models that are really built: figure 4 of the RCM paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polyscene.runtime.errors import UserError

from ..models.base import DenseModel
from ..models.build import KINDS, ModelOptions, empty_model

TITLES = {
    "single": "single-task",
    "multi_task": "multi-task",
    "frozen": "frozen encoder",
    "task_norms": "task-specific BNs",
    "task_convolutions": "task-specific Convs",
    "series_adapters": "series RA",
    "parallel_adapters": "parallel RA",
    "rcm": "RCM",
    "pad_net": "PAD-Net",
    "mti_net": "MTI-Net",
}


@dataclass(frozen=True)
class Growth:
    """Parameters of one kind of model with 1, 2, ... tasks.

    Attributes:
        kind: of the model.
        encoder: numbers of parameters of the encoder, shared and per task (what figure 4 shows).
        heads: of all heads together.
        shared: parameters of the encoder that all tasks use.
        of_task: parameters of the encoder that one task owns, by kind: ``modulators``, ``norms``, ...
    """

    kind: str
    encoder: tuple[int, ...]
    heads: tuple[int, ...]
    shared: int
    of_task: dict[str, int]


def parameter_growth(
    options: ModelOptions,
    arch: str,
    tasks: int,
    kinds: Sequence[str] = KINDS,
    channels: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Growth]:
    """Build every kind of model with so many tasks, and count while its tasks are removed one after the other.

    Args:
        options: head, output stride, rank and the like; its ``kind`` is replaced.
        arch: timm name of the backbone.
        tasks: largest number of tasks.
        kinds: of models, see :data:`..models.build.KINDS`.
        channels: of every task's output.
        progress: called with the number of kinds done.

    Raises:
        UserError: no task, not a plain ResNet, or an unknown kind.
    """
    if tasks < 1:
        raise UserError(f"tasks={tasks} is too small; it must be at least 1")
    grown = {}
    for done, kind in enumerate(kinds, start=1):
        rank = options.rank if kind == "rcm" else None
        model = empty_model(
            replace(options, kind=kind, rank=rank), arch, {f"task{i}": channels for i in range(1, tasks + 1)}
        )
        grown[kind] = _count(model, kind)
        if progress is not None:
            progress(done)
    return grown


def _count(model: DenseModel, kind: str) -> Growth:
    encoder, heads = [], []
    for task in reversed(model.tasks):
        counts = model.parameter_counts()
        head = sum(each["head"] for each in counts.tasks.values())
        heads.insert(0, head)
        encoder.insert(0, counts.total - head)
        own = {part: number for part, number in counts.tasks[task].items() if part != "head"}
        model.remove_task(task)
    return Growth(kind, tuple(encoder), tuple(heads), counts.shared, own)
