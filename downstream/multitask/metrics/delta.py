"""Delta_MTL: how much better or worse a multi-task model is than single-task models."""

from __future__ import annotations

from collections.abc import Mapping


def task_changes(
    model: Mapping[str, float], single: Mapping[str, float], better: Mapping[str, str]
) -> dict[str, float]:
    """Relative change of every task against its single-task model; above 0 is better.

    The summand of equation 2.2 of the thesis, ``(-1)^l (M_m - M_b) / M_b`` with l = 1 where lower is better.

    Args:
        model: task -> main metric of the multi-task model.
        single: task -> the same metric of the single-task model of that task; others may be in it.
        better: task -> ``higher`` or ``lower``; others may be in it.

    Returns:
        task -> change as a share: 0.01 is one percent better.

    Raises:
        ValueError: a task without a single-task result or direction, or a single-task result that is not above 0.
    """
    changes = {}
    for task, value in model.items():
        if task not in single:
            raise ValueError(f"no single-task result of '{task}'")
        if better.get(task) not in ("higher", "lower"):
            raise ValueError(f"task '{task}' needs a direction, 'higher' or 'lower', not {better.get(task)!r}")
        if not single[task] > 0:
            raise ValueError(f"the single-task result of '{task}' is {single[task]}; a change needs one above 0")
        change = (value - single[task]) / single[task]
        changes[task] = change if better[task] == "higher" else -change
    return changes


def delta_mtl(model: Mapping[str, float], single: Mapping[str, float], better: Mapping[str, str]) -> float:
    """Mean of :func:`task_changes` over the model's tasks: Delta_MTL (thesis, equation 2.2) as a share.

    Above 0 is better than single-task models. The RCM paper's tables print the negated value as "drop" (its
    equation 4).

    Raises:
        ValueError: no task; otherwise as :func:`task_changes`.
    """
    if not model:
        raise ValueError("Delta_MTL needs at least one task")
    changes = task_changes(model, single, better)
    return sum(changes.values()) / len(changes)
