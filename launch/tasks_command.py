"""``polyscene tasks``: list, merge and remove the tasks of finished multi-task models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polyscene.downstream.multitask.models.incremental import merge_models, remove_task
from polyscene.downstream.multitask.models.model_file import SavedModel, load_model, save_model
from polyscene.runtime.errors import UserError
from polyscene.runtime.files import make_folder


def list_tasks(run: Path) -> int:
    """Print a model's tasks with what each owns; returns the exit code.

    Raises:
        UserError: no such model.
    """
    saved = load_model(run)
    counts = saved.model.parameter_counts()
    options = saved.options
    table = Table()
    for name in ("task", "labels of", "channels"):
        table.add_column(name, justify="right" if name == "channels" else "left")
    table.add_column("own parameters", justify="right")
    for task, record in saved.tasks.items():
        where = record.source or record.dataset
        table.add_row(task, where, str(record.channels), f"{counts.of_task(task):,}")
    table.add_row("shared by all", "", "", f"{counts.shared:,}")
    table.add_row("whole model", "", "", f"{counts.total:,}")
    output = Console(highlight=False)
    output.print(
        f"{run}: {options.kind}, {saved.arch}, {options.decoder()}",
        markup=False,
        soft_wrap=True,
    )
    output.print(table)
    return 0


def merge(out: Path, runs: Sequence[Path]) -> str:
    """Write one model with the tasks of several runs; returns a line that says what was written.

    Raises:
        UserError: see `load_model` and `merge_models`; or ``out`` exists already.
    """
    if len(runs) < 2:
        raise UserError("merging needs at least two models; give OUT and then the runs")
    path = _new_file(out, runs)
    return _write(path, merge_models({str(run): load_model(run) for run in runs}))


def remove(run: Path, task: str, out: Path) -> str:
    """Write a model without one of its tasks; returns a line that says what was written.

    Raises:
        UserError: no such model or task, its only task, or ``out`` exists already.
    """
    path = _new_file(out, [run])
    return _write(path, remove_task(load_model(run), task))


def _new_file(out: Path, sources: Sequence[Path]) -> Path:
    """The model file that ``out`` means: itself if it ends in .safetensors, else the one in that folder."""
    path = out if out.suffix == ".safetensors" else out / "model.safetensors"
    if path.exists():
        hint = "; OUT is one of the models" if any(path in (s, s / path.name) for s in sources) else ""
        raise UserError(f"'{path}' exists already{hint}; name another folder or file to write")
    return path


def _write(path: Path, saved: SavedModel) -> str:
    make_folder(path.parent)
    save_model(path, saved)
    return f"{path}: {saved.options.kind} {saved.arch} with {', '.join(saved.tasks)}"
