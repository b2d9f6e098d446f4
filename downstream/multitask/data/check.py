"""Is a data set what its archive should be? Missing files, sizes and values, told in lines a user can act on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage, read_image

from .records import DenseImages, size_fault


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        level: ``error``: training or evaluation would stop or be wrong; ``warning``: it may be intended.
        subject: split and what of it: ``val images``, ``train depth``.
        count: images concerned.
        message: what is wrong, with the first image or file as an example.
    """

    level: str
    subject: str
    count: int
    message: str


@dataclass
class _Tally:
    """Counts findings of a kind and keeps the first as the example."""

    found: dict[tuple[str, str, str], tuple[int, str]]

    def add(self, level: str, subject: str, kind: str, message: str) -> None:
        key = (level, subject, kind)
        count, first = self.found.get(key, (0, message))
        self.found[key] = (count + 1, first)

    def findings(self) -> list[Finding]:
        return [Finding(level, subject, n, message) for (level, subject, _), (n, message) in self.found.items()]


def check_images(
    images: DenseImages, sample: int | None = None, progress: Callable[[int], None] | None = None
) -> list[Finding]:
    """Check one split: all files exist; images decode; targets decode, fit their image, and hold plausible values.

    What can be wrong with a task's values, the task says itself (`TaskSpec.problem`).

    Args:
        images: the split.
        sample: decode so many images, spread evenly over the split; None: all. Existence is checked for all.
        progress: called with 1 for every image decoded.

    Returns:
        What was found, at most one line for each kind of fault; empty if nothing is wrong.
    """
    tally = _Tally({})
    complete = [index for index in range(len(images)) if _check_files(images, index, tally)]
    count = len(complete) if sample is None else min(sample, len(complete))
    for k in range(count):
        _check_values(images, complete[k * len(complete) // count], tally)
        if progress is not None:
            progress(1)
    return tally.findings()


def check_splits(train: DenseImages, val: DenseImages, published: dict[str, int]) -> list[Finding]:
    """Check that two splits share no image and have the published numbers of images.

    Args:
        train: training images.
        val: images for evaluation.
        published: split name -> number of images of the official list.
    """
    findings = []
    shared = sorted(set(train.names) & set(val.names))
    if shared:
        message = f"the lists {train.split} and {val.split} share images, first '{shared[0]}'; scores would be too good"
        findings.append(Finding("error", f"{train.split} and {val.split}", len(shared), message))
    for images in (train, val):
        expected = published.get(images.split, len(images))
        if len(images) != expected:
            message = f"the list names {len(images):,} images, the published one {expected:,}; scores do not compare"
            findings.append(Finding("warning", f"{images.split} list", len(images), message))
    return findings


def _check_files(images: DenseImages, index: int, tally: _Tally) -> bool:
    """Whether every file of an image exists."""
    complete = True
    path = images.image_path(index)
    if not path.is_file():
        tally.add("error", f"{images.split} images", "missing", f"'{path}' does not exist")
        complete = False
    for key, source in images.sources.items():
        for missing in source.missing(images.names[index]):
            tally.add("error", f"{images.split} {key}", "missing", f"'{missing}' does not exist")
            complete = False
    return complete


def _check_values(images: DenseImages, index: int, tally: _Tally) -> None:
    name = images.names[index]
    try:
        image = read_image(images.image_path(index))
    except UnreadableImage as error:
        tally.add("error", f"{images.split} images", "unreadable", str(error))
        return
    size = (image.shape[1], image.shape[2])
    for key, source in images.sources.items():
        subject = f"{images.split} {key}"
        try:
            target = source.read(name, size)
        except UserError as error:
            tally.add("error", subject, "unreadable", str(error))
            continue
        fault = size_fault(images.tasks[key], target, size)
        if fault:
            tally.add("error", subject, "shape", f"'{name}': the target {fault}")
            continue
        problem = images.tasks[key].problem(*target)
        if problem:
            tally.add("warning", subject, "values", f"'{name}': {problem}")
