"""The network of a multi-task config without its data and weights: only shapes matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from polyscene.downstream.multitask.analysis.inference import Network
from polyscene.downstream.multitask.data import folder, nyud, pascal_context
from polyscene.downstream.multitask.data.files import read_list
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.downstream.multitask.tasks.loading import load_task
from polyscene.downstream.multitask.tasks.spec import TaskSpec
from polyscene.runtime.errors import UserError

from .multitask_checks import check_values
from .multitask_config import MultitaskConfig, auxiliary_tasks, chosen_tasks
from .multitask_model import model_options, open_weights, task_settings
from .named_config import named_config


def named_network(
    name: str, overrides: Sequence[str] = (), *, tasks: Sequence[str] | None = None, arch: str | None = None
) -> Network:
    """The network that a config would train; neither its data set nor its weights need exist.

    With ``model.base``, whose file must exist, it has the tasks of the base, too.

    Args:
        name: config or run, see `named_config`.
        overrides: ``key=value`` words that change it.
        tasks: instead of the config's; auxiliary tasks among them are no longer auxiliary.
        arch: instead of the config's backbone.

    Raises:
        UserError: a wrong config, a task that its data set does not have, or a backbone that is nowhere named.
    """
    config = named_config(name, overrides, without_data=True)
    if tasks is not None:
        extra = tuple(task for task in auxiliary_tasks(config) if task not in tasks) or None
        config = replace(config, task=None, tasks=tuple(tasks), auxiliary_tasks=extra)
    # What only a training needs may be left out; what is there is checked as for a training.
    length = {"iterations": 1} if config.iterations is None and config.epochs is None else {}
    check_values(replace(config, weights=config.weights or "random", **length))
    specs = task_shapes(config, chosen_tasks(config))
    extra = task_shapes(config, auxiliary_tasks(config))
    if config.model.base is not None:
        return _extended(config.model.base, specs)
    return Network(
        model_options(config),
        arch or _arch(name, config),
        {task: spec.channels for task, spec in specs.items()},
        {task: spec.channels for task, spec in extra.items()},
        tuple(task for task, spec in specs.items() if spec.image_level),
    )


def task_shapes(config: MultitaskConfig, tasks: Sequence[str]) -> dict[str, TaskSpec]:
    """Name -> task as the config's kind of data set has it, in the order given.

    Args:
        config: names the data set.
        tasks: names, and paths of task files (``.py``).

    Raises:
        UserError: a task that the data set does not have, one named twice, or classes that only the data would tell.
    """
    found: dict[str, TaskSpec] = {}
    for task in tasks:
        spec = load_task(task) if task.endswith(".py") else _built_in(config, task)
        if spec.name in found:
            raise UserError(f"task '{spec.name}' is named twice; remove one")
        found[spec.name] = spec
    return found


def _extended(base: str, specs: dict[str, TaskSpec]) -> Network:
    saved = load_model(base)
    records = {name: record.channels for name, record in saved.tasks.items()}
    new = {name: spec for name, spec in specs.items() if name not in records}
    return Network(
        saved.options,
        saved.arch,
        {**records, **{name: spec.channels for name, spec in new.items()}},
        {name: record.channels for name, record in saved.auxiliary.items()},
        (*saved.model.image_level, *(name for name, spec in new.items() if spec.image_level)),
    )


def _arch(name: str, config: MultitaskConfig) -> str:
    if config.arch is not None:
        return config.arch
    if config.weights is None or (config.weights != "random" and not Path(config.weights).exists()):
        where = "names no weights" if config.weights is None else f"has weights={config.weights}, which do not exist"
        raise UserError(f"'{name}' {where}, and does not say which backbone it has; add arch=resnet50 or the like")
    return open_weights(config).arch


def _built_in(config: MultitaskConfig, task: str) -> TaskSpec:
    settings, kind = task_settings(config), config.data.kind
    if kind == "folder":
        if task not in folder.TASKS:
            raise UserError(f"a folder of images has no task '{task}'; it may have {', '.join(folder.TASKS)}")
        return folder.make_task(task, _classes(config, task))
    known = (
        nyud.tasks(settings.void_class, settings.depth_protocol, settings.normals_axes)
        if kind == "nyud"
        else pascal_context.tasks(settings.saliency_protocol, settings.normals_axes)
    )
    if task not in known:
        raise UserError(f"{kind} has no task '{task}'; it has {', '.join(known)}")
    return known[task]


def _classes(config: MultitaskConfig, task: str) -> tuple[str, ...]:
    """Names of the classes in the list that lies in the folder."""
    if task not in folder.CLASS_LISTS:
        return ()
    path = Path(config.data.root).expanduser() / folder.CLASS_LISTS[task]
    if not path.is_file():
        raise UserError(
            f"how many classes '{task}' has is written in '{path}', which does not exist; data.root=DIR must hold it"
        )
    return read_list(path)
