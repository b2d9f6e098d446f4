"""Data sets by name, and what a trained model must remember of a task to be used without its data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from polyscene.runtime.errors import UserError

from ..metrics.depth import PROTOCOLS as DEPTH_PROTOCOLS
from ..metrics.saliency import PROTOCOLS as SALIENCY_PROTOCOLS
from ..tasks.loading import load_task
from ..tasks.spec import TaskSpec
from . import folder, nyud, pascal_context
from .records import DenseImages

KINDS = ("nyud", "pascal", "folder")
AXES = ("nyud", "camera")

PUBLISHED_COUNTS: dict[str, dict[str, int]] = {
    "nyud": nyud.PUBLISHED_COUNTS,
    "pascal": pascal_context.PUBLISHED_COUNTS,
    "folder": {},
}
"""Kind -> split -> images of the official list."""

_SETTINGS_OF_TASK = {
    ("nyud", "segmentation"): "void_class",
    **{(kind, "depth"): "depth_protocol" for kind in KINDS},
    **{(kind, "saliency"): "saliency_protocol" for kind in KINDS},
    **{(kind, "normals"): "normals_axes" for kind in KINDS},
}


@dataclass(frozen=True)
class TaskSettings:
    """Choices in what a data set's tasks are.

    Attributes:
        void_class: NYUD only: train and judge void as a 41st class.
        depth_protocol: ``survey`` or ``rcm``, see `depth.task`.
        saliency_protocol: ``rcm``, ``survey`` or ``atrc``, see `saliency.task`.
        normals_axes: ``nyud`` or ``camera``, see `normals.task`.

    Raises:
        UserError: another value.
    """

    void_class: bool = False
    depth_protocol: str = "survey"
    saliency_protocol: str = "rcm"
    normals_axes: str = "nyud"

    def __post_init__(self) -> None:
        allowed = {
            "void_class": (True, False),
            "depth_protocol": DEPTH_PROTOCOLS,
            "saliency_protocol": SALIENCY_PROTOCOLS,
            "normals_axes": AXES,
        }
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name}: {value!r} must be one of {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class TaskRecord:
    """A task as a model file stores it: enough to build its `TaskSpec` again.

    Attributes:
        name: of the task.
        dataset: kind of the data set it was opened from, one of `KINDS`.
        channels: of the network's output.
        classes: class names, where there are classes.
        settings: those fields of `TaskSettings` that concern the task.
        source: file of a user's task; empty for built-in tasks.
        image_level: whether it has one output an image.
    """

    name: str
    dataset: str
    channels: int
    classes: tuple[str, ...] = ()
    settings: dict[str, str | bool] = field(default_factory=dict)
    source: str = ""
    image_level: bool = False

    def to_json(self) -> dict[str, Any]:
        """What `json.dumps` can write and `from_json` reads; ``image_level`` is there only if it is true."""
        content = {**asdict(self), "classes": list(self.classes)}
        if not self.image_level:
            del content["image_level"]
        return content

    @classmethod
    def from_json(cls, content: Any) -> TaskRecord:
        """The record that `to_json` was called on.

        Raises:
            UserError: it is no such record.
        """
        types = {"name": str, "dataset": str, "channels": int, "classes": list, "settings": dict, "source": str}
        if not isinstance(content, Mapping) or set(content) - {"image_level"} != set(types):
            raise UserError(f"a task record must have {', '.join(types)}; the file was not written by polyscene")
        content = {"image_level": False, **content}  # absent of dense tasks
        wrong = [key for key, kind in {**types, "image_level": bool}.items() if not isinstance(content[key], kind)]
        if wrong or not all(isinstance(name, str) for name in content["classes"]):
            raise UserError(
                f"a task record's '{(wrong or ['classes'])[0]}' is damaged; train again or restore the file"
            )
        return cls(**{**content, "classes": tuple(content["classes"]), "settings": dict(content["settings"])})


def open_dense_images(
    kind: str, root: str | Path, split: str, tasks: Sequence[str], settings: TaskSettings | None = None
) -> DenseImages:
    """A split of a data set with the tasks that are asked for, in their order.

    Args:
        kind: one of `KINDS`.
        root: folder of the data set.
        split: name of the list.
        tasks: names of built-in tasks, and paths of a user's task files (``.py``).
        settings: of the tasks; None: the defaults.

    Raises:
        UserError: an unknown kind, split or task, a task named twice, none at all, or what the data set's own function
            says.
    """
    settings = TaskSettings() if settings is None else settings
    if not tasks:
        raise UserError(f"no task is named; {kind} needs at least one")
    if kind not in KINDS:
        raise UserError(f"data set '{kind}' does not exist; choose from {', '.join(KINDS)}")
    if settings.void_class and kind != "nyud":
        raise UserError(f"void_class is a choice of nyud, not of {kind}; leave it out")
    own = {entry: load_task(entry) for entry in tasks if entry.endswith(".py")}
    order = [own[entry].name if entry in own else entry for entry in tasks]
    twice = next((name for i, name in enumerate(order) if name in order[:i]), None)
    if twice is not None:
        raise UserError(f"task '{twice}' is named twice; remove one")
    images = _open(kind, root, split, [name for name in tasks if name not in own], settings)
    for spec in own.values():
        images = images.with_task(spec)
    return images.only(order)


def images_with_people(images: DenseImages, kind: str, progress: Callable[[int], None] | None = None) -> DenseImages:
    """Those images that show an annotated person: what human parts are trained on.

    Args:
        images: opened with the task ``parts``.
        kind: of the data set.
        progress: called with 1 for every file read.

    Raises:
        UserError: the data set has no parts, a file is damaged, or no image has people.
    """
    finders = {"pascal": pascal_context.person_images, "folder": folder.person_images}
    if kind not in finders:
        raise UserError(f"{kind} has no human parts; person_images_only is for pascal and folder")
    found = finders[kind](images, progress)
    if not found:
        raise UserError(f"{images.title}: no image of the list '{images.split}' has an annotated person")
    return images.subset(found)


def task_records(images: DenseImages, kind: str, settings: TaskSettings | None = None) -> dict[str, TaskRecord]:
    """Task name -> what a model file must store of it.

    Args:
        images: of `open_dense_images`.
        kind: it was opened with.
        settings: it was opened with.
    """
    settings = TaskSettings() if settings is None else settings
    records = {}
    for name, spec in images.tasks.items():
        key = None if spec.source else _SETTINGS_OF_TASK.get((kind, name))
        chosen = {key: getattr(settings, key)} if key else {}
        records[name] = TaskRecord(name, kind, spec.channels, spec.classes, chosen, spec.source, spec.image_level)
    return records


def image_level_tasks(records: Mapping[str, TaskRecord]) -> tuple[str, ...]:
    """Names of those tasks that have one output an image."""
    return tuple(name for name, record in records.items() if record.image_level)


def task_of(record: TaskRecord) -> TaskSpec:
    """The task of a record; no data set is needed.

    Raises:
        UserError: a user's task file is gone or has changed, or the record is not of this version.
    """
    if record.source:
        spec = load_task(record.source)
    else:
        spec = _built_in(record)
    where = f"file '{record.source}'" if record.source else f"data set {record.dataset}"
    if spec.name != record.name or spec.channels != record.channels:
        raise UserError(
            f"task '{record.name}' with {record.channels} channels is '{spec.name}' with {spec.channels} in its "
            f"{where} now; restore what the model was trained with"
        )
    if spec.image_level != record.image_level:
        now, before = ("image-level", "dense") if spec.image_level else ("dense", "image-level")
        raise UserError(
            f"task '{record.name}' was {before} and is {now} in its {where}; restore what the model was trained with"
        )
    return spec


def _open(kind: str, root: str | Path, split: str, tasks: list[str], settings: TaskSettings) -> DenseImages:
    if kind == "nyud":
        return nyud.open_nyud(root, split, tasks, _nyud_tasks(settings))
    if kind == "pascal":
        return pascal_context.open_pascal_context(root, split, tasks, _pascal_tasks(settings))
    return folder.open_folder(
        root, split, tasks, settings.depth_protocol, settings.saliency_protocol, settings.normals_axes
    )


def _nyud_tasks(settings: TaskSettings) -> dict[str, TaskSpec]:
    return nyud.tasks(settings.void_class, settings.depth_protocol, settings.normals_axes)


def _pascal_tasks(settings: TaskSettings) -> dict[str, TaskSpec]:
    return pascal_context.tasks(settings.saliency_protocol, settings.normals_axes)


def _built_in(record: TaskRecord) -> TaskSpec:
    unknown = set(record.settings) - {item.name for item in fields(TaskSettings)}
    if unknown:
        raise UserError(f"task '{record.name}': the setting '{min(unknown)}' is unknown; use a newer polyscene")
    settings = TaskSettings(**record.settings)
    if record.dataset == "folder":
        if record.name not in folder.TASKS or (record.name in folder.CLASS_LISTS and not record.classes):
            raise UserError(f"task '{record.name}' of a folder is unknown or has no classes; restore the model file")
        return folder.make_task(
            record.name,
            record.classes,
            settings.depth_protocol,
            settings.saliency_protocol,
            settings.normals_axes,
        )
    makers = {"nyud": _nyud_tasks, "pascal": _pascal_tasks}
    specs = makers[record.dataset](settings) if record.dataset in makers else {}
    if record.name not in specs:
        raise UserError(f"data set '{record.dataset}' has no task '{record.name}'; use a newer polyscene")
    return specs[record.name]
