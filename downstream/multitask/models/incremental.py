"""Tasks come and go: adding to a finished model, removing from it, and joining models of separate jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from polyscene.runtime.errors import UserError

from ..data.opening import TaskRecord, image_level_tasks
from ..rcm.state import merge_tasks
from .families import make_empty_model
from .model_file import SavedModel


def add_tasks(saved: SavedModel, records: Mapping[str, TaskRecord], seed: int | None = None) -> SavedModel:
    """Add new tasks and ask for gradients of theirs alone; nothing else of the model changes.

    Args:
        saved: a model of independent tasks; it is changed.
        records: task -> what it is.
        seed: of the new heads; None for the model's own.

    Returns:
        The same model with records of all its tasks.

    Raises:
        UserError: a shared encoder, or a name that is taken or cannot be used; the model is then unchanged.
    """
    if not saved.options.takes_tasks:
        raise UserError(
            f"model.kind={saved.options.kind}: tasks cannot be added to this model; use rcm or another kind with parts "
            "per task on a frozen encoder"
        )
    if taken := [task for task in records if task in saved.tasks]:
        raise UserError(f"task '{taken[0]}' is already in this model; choose another name or remove it first")
    for task, record in records.items():
        saved.model.add_task(task, record.channels, seed, record.image_level)
    saved.model.train_only(records)
    return replace(saved, tasks={**saved.tasks, **records})


def remove_task(saved: SavedModel, task: str) -> SavedModel:
    """Remove a task with all that only it uses.

    Args:
        saved: the model; it is changed.
        task: one of several.

    Returns:
        The same model with records of the tasks that are left.

    Raises:
        UserError: no such task, or it is the only one.
    """
    saved.model.check_present(task)
    if len(saved.tasks) == 1:
        raise UserError(f"'{task}' is the only task of this model; nothing would be left")
    saved.model.remove_task(task)
    return replace(saved, tasks={name: record for name, record in saved.tasks.items() if name != task})


def merge_models(parts: Mapping[str, SavedModel]) -> SavedModel:
    """One model with the tasks of several jobs that trained from the same initial model.

    Args:
        parts: name of the run or file, for messages -> its model. A task may be in several of them only if it is the
            same, bit for bit.

    Returns:
        A new model. Its metadata is what all agree on.

    Raises:
        UserError: other backbones, options, filter banks or records; a task twice with different values; or models
            of a shared encoder.
        ValueError: nothing to merge.
    """
    if not parts:
        raise ValueError("nothing to merge")
    (first, start), *others = parts.items()
    if not start.options.independent_tasks:
        raise UserError(
            f"model.kind={start.options.kind}: tasks cannot be merged with others into a model whose tasks train one "
            "encoder together; use rcm or another kind with parts per task"
        )
    records = dict(start.tasks)
    for name, part in others:
        _check_alike(first, start, name, part)
        for task, record in part.tasks.items():
            if records.setdefault(task, record) != record:
                raise UserError(f"task '{task}' of '{name}' is not that of the others; remove it from one of them")
    state = merge_tasks({name: part.model.state_dict() for name, part in parts.items()})
    channels = {task: record.channels for task, record in records.items()}
    whole = image_level_tasks(records)
    model = make_empty_model(start.options, start.arch, channels, seed=start.model.head_seed, image_level=whole)
    model.load_state_dict(state)
    common = {
        key: value
        for key, value in start.metadata.items()
        if all(part.metadata.get(key) == value for _, part in others)
    }
    return SavedModel(model, start.arch, start.options, records, common)


def _check_alike(first: str, start: SavedModel, name: str, part: SavedModel) -> None:
    if part.arch != start.arch:
        raise UserError(f"'{first}' is a {start.arch} and '{name}' a {part.arch}; merge models of one backbone")
    if type(part.options) is not type(start.options):
        raise UserError(f"'{first}' and '{name}' have backbones of other scales; merge models of one configuration")
    for option in fields(start.options):
        here, there = getattr(start.options, option.name), getattr(part.options, option.name)
        if here != there:
            raise UserError(
                f"'{first}' has {option.name}={here} and '{name}' {option.name}={there}; "
                "merge only tasks that were trained from the same initial model"
            )
