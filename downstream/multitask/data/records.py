"""A split of a data set: images and targets of several tasks, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image

from ..tasks.spec import Target, TaskSpec, target_size


@dataclass(frozen=True)
class Sample:
    """One image with its targets.

    Attributes:
        name: as the split file calls it.
        image: (3, H, W) uint8, RGB.
        targets: task name -> ``(values, valid)``, of the image's size; 1x1 of an image-level task.
    """

    name: str
    image: Tensor
    targets: dict[str, Target]


class TargetSource(Protocol):
    """Where a task's targets come from."""

    def missing(self, name: str) -> list[str]:
        """Paths of files that an image's target needs and that do not exist."""

    def read(self, name: str, size: tuple[int, int]) -> Target:
        """The target of an image of ``size`` = (height, width); UserError names the file at fault."""


@dataclass(frozen=True)
class TargetFiles:
    """Targets stored in one file an image, or in several that belong together.

    Attributes:
        root: folder of the data set.
        patterns: for every file that is needed, the places where it may lie: paths with ``{name}``.
        decode: ``(size, path, ...) -> Target``, of module level; one path for each of ``patterns``.
    """

    root: Path
    patterns: tuple[tuple[str, ...], ...]
    decode: Callable[..., Target]

    def missing(self, name: str) -> list[str]:
        """Files that do not exist; of alternatives, the first is named."""
        return [
            str(self.root / choices[0].format(name=name)) for choices in self.patterns if not self._find(choices, name)
        ]

    def read(self, name: str, size: tuple[int, int]) -> Target:
        """Read and decode.

        Raises:
            UserError: a file is missing or is not what the data set's archive holds.
        """
        paths = [self._find(choices, name) or self.root / choices[0].format(name=name) for choices in self.patterns]
        return self.decode(size, *paths)

    def _find(self, choices: tuple[str, ...], name: str) -> Path | None:
        paths = (self.root / choice.format(name=name) for choice in choices)
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class OwnTargets:
    """Targets of a user's task, read by its `TaskSpec.read`."""

    root: Path
    task: TaskSpec

    def missing(self, name: str) -> list[str]:
        """Unknown before reading: none."""
        return []

    def read(self, name: str, size: tuple[int, int]) -> Target:
        """What the task's own function returns.

        Raises:
            UserError: it fails.
        """
        try:
            return Target(*self.task.read(self.root, name))
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"task '{self.task.name}': reading '{name}' failed: {reason}") from error


@dataclass(frozen=True)
class DenseImages:
    """The images of a split, in the order of its list, with the tasks that are asked of them.

    Attributes:
        title: data set and version, for people and results.
        root: folder of the data set.
        split: name of the list.
        names: of the images.
        pattern: path of an image below ``root``, with ``{name}``.
        tasks: task name -> what the task is in this data set.
        sources: task name -> where its targets come from; the same keys.
        other_patterns: more places where an image may lie.
    """

    title: str
    root: Path
    split: str
    names: tuple[str, ...]
    pattern: str
    tasks: Mapping[str, TaskSpec]
    sources: Mapping[str, TargetSource]
    other_patterns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def image_path(self, index: int) -> Path:
        """File of an image; of several places where it may lie, the first if it is in none."""
        name = self.names[index]
        paths = [self.root / pattern.format(name=name) for pattern in (self.pattern, *self.other_patterns)]
        if len(paths) == 1:
            return paths[0]
        return next((path for path in paths if path.is_file()), paths[0])

    def read(self, index: int) -> Sample:
        """Read one image and all its targets.

        Raises:
            UserError: a file is missing or wrong, or a target has not the size of its image (1x1 at the image level).
        """
        name = self.names[index]
        image = read_image(self.image_path(index))
        size = (image.shape[1], image.shape[2])
        targets = {}
        for key, source in self.sources.items():
            targets[key] = source.read(name, size)
            if fault := size_fault(self.tasks[key], targets[key], size):
                raise UserError(f"{self.title} '{name}': the target of task '{key}' {fault}")
        return Sample(name, image, targets)

    def subset(self, indices: Sequence[int]) -> DenseImages:
        """Some of the images, in the order of ``indices``."""
        return replace(self, names=tuple(self.names[i] for i in indices))

    def only(self, tasks: Sequence[str]) -> DenseImages:
        """The same images with some of the tasks.

        Raises:
            UserError: a task that the data set does not have.
        """
        unknown = [name for name in tasks if name not in self.tasks]
        if unknown:
            raise UserError(f"{self.title} has no task '{unknown[0]}'; it has {', '.join(self.tasks)}")
        return replace(self, tasks={n: self.tasks[n] for n in tasks}, sources={n: self.sources[n] for n in tasks})

    def with_task(self, task: TaskSpec) -> DenseImages:
        """The same images with a user's task added.

        Raises:
            UserError: the name is taken, or the task cannot read targets.
        """
        if task.name in self.tasks:
            raise UserError(f"{self.title} already has a task '{task.name}'; give yours another name")
        if task.read is None:
            raise UserError(f"task '{task.name}' has no read=..., and {self.title} has no targets for it")
        sources = {**self.sources, task.name: OwnTargets(self.root, task)}
        return replace(self, tasks={**self.tasks, task.name: task}, sources=sources)


def size_fault(spec: TaskSpec, target: Target, size: tuple[int, int]) -> str | None:
    """What is wrong with the size of a target, as words after "the target"; None if nothing is.

    Args:
        spec: its task.
        target: what was read.
        size: (height, width) of the image.
    """
    wanted = target_size(spec, size)
    wrong = [shape for shape in (tuple(target.values.shape[-2:]), tuple(target.valid.shape)) if shape != wanted]
    if not wrong:
        return None
    found = f"is {'x'.join(map(str, wrong[0]))}"
    if spec.image_level:
        return f"{found}; read=... of an image-level task must return values and valid of 1x1"
    return f"{found}, the image {size[0]}x{size[1]}; both must come from the same archive"


def find_root(root: str | Path, folder: str, witness: str) -> Path:
    """``root`` itself, or ``root/folder``, whichever holds ``witness``.

    Raises:
        UserError: neither does.
    """
    root = Path(root).expanduser()
    for base in (root, root / folder):
        if (base / witness).is_dir():
            return base
    raise UserError(f"'{root}' holds no {witness} and no {folder}/{witness}; unpack the {folder} archive there")
