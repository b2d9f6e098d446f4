"""State dicts of models with tasks: which keys are whose, and how tasks from separate jobs come together.

A key with ``tasks.NAME.`` in it (at its start or after a dot) belongs to the task NAME, in the encoder as in
anything else that keeps a ``ModuleDict`` named ``tasks``, such as the heads. All other keys are shared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .encoder import TaskEncoder


def task_of(key: str) -> str | None:
    """The task that a key of a state dict belongs to; None if it is shared."""
    parts = key.split(".")
    if "tasks" not in parts[:-2]:
        return None
    return parts[parts.index("tasks") + 1]


def tasks_in(state: Mapping[str, Tensor]) -> list[str]:
    """The tasks that a state dict holds, in the order in which they appear."""
    return list(dict.fromkeys(task for key in state if (task := task_of(key)) is not None))


def merge_tasks(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One state dict with the tasks of several jobs that trained on the same filter bank.

    Args:
        states: name of the run or file, for messages -> its state dict. A task may be in several of them only if it
            is the same, bit for bit.

    Raises:
        UserError: the shared part differs, or a task is in two of them with different values.
        ValueError: nothing to merge.
    """
    if not states:
        raise ValueError("nothing to merge")
    (first, start), *others = states.items()
    merged = dict(start)
    shared = {key: value for key, value in start.items() if task_of(key) is None}
    owner = dict.fromkeys(tasks_in(start), first)
    for name, state in others:
        its_shared = {key: value for key, value in state.items() if task_of(key) is None}
        different = _differences(shared, its_shared)
        if different:
            raise UserError(
                f"'{name}' does not have the filter bank of '{first}' ({len(different)} shared tensors differ, first: "
                f"{different[0]}); merge only tasks that were trained from the same initial model, or train one with "
                "model.base=RUN, the run of the other"
            )
        for task in tasks_in(state):
            parts = {key: value for key, value in state.items() if task_of(key) == task}
            if task in owner:
                present = {key: value for key, value in merged.items() if task_of(key) == task}
                if _differences(present, parts):
                    raise UserError(
                        f"task '{task}' is in both '{owner[task]}' and '{name}' with different values; "
                        "remove it from one of them"
                    )
                continue
            merged.update(parts)
            owner[task] = name
    return merged


def load_tasks(encoder: TaskEncoder, state: Mapping[str, Tensor]) -> None:
    """Load a state dict into an encoder, adding the tasks it lacks.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    for task in tasks_in(state):
        if task not in encoder.tasks:
            encoder.add_task(task)
    if different := state_difference(encoder.state_dict(), state):
        raise UserError(
            f"these weights do not fit the model ({len(different)} tensors are missing, unexpected or of another "
            f"shape, first: {different[0]}); build it with the options it was trained with"
        )
    encoder.load_state_dict(state)


def state_difference(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Keys that only one of two state dicts has, or whose shapes or types differ, in alphabetical order."""
    return sorted(key for key in wanted.keys() | found.keys() if _form(wanted, key) != _form(found, key))


def _differences(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Keys that only one has, or whose tensors are not the same bit for bit."""
    keys = [*left, *(key for key in right if key not in left)]
    return [
        key
        for key in keys
        if key not in left
        or key not in right
        or left[key].dtype != right[key].dtype
        or not torch.equal(left[key].cpu(), right[key].cpu())
    ]


def _form(state: Mapping[str, Tensor], key: str) -> tuple[tuple[int, ...], torch.dtype] | None:
    return (tuple(state[key].shape), state[key].dtype) if key in state else None
