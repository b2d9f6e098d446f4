"""Pixel affinities shared by two tasks, against the receptive field: figure 5.3 of the MTI-Net thesis chapter.

A kernel of fixed size is laid on every pixel of a label map with some dilation. Its centre forms a pair with every
other pixel of the kernel; a task calls a pair similar or not (`..tasks.affinity`). Two tasks correspond as far as they
call the same pairs similar and the same pairs dissimilar. The thesis leaves open how that is put into one number, and
what its thresholds are; here:

- every pair of pixels of an image counts once, and counts of all images are added;
- only pairs whose two pixels are valid in both tasks count;
- *similar pairs matched*: of the pairs that at least one task calls similar, the share that both do; the same for
  dissimilar pairs; *correspondence* is the mean of the two. Plain agreement says little at small dilations, where
  nearly all pairs are similar in every task; it and Cohen's kappa are given besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.worker_loader import WorkerLoader

from ..data.records import DenseImages
from ..tasks.affinity import PixelAffinity
from ..tasks.spec import Target, TaskSpec


@dataclass(frozen=True)
class AffinityCounts:
    """How often two tasks call the same pairs of pixels similar.

    Attributes:
        tasks: N names.
        dilations: D numbers of pixels.
        images: that were counted.
        table: (N (N - 1) / 2, D, 2, 2) int64 in the order of `pairs`: the numbers of pixel pairs that the first task
            calls dissimilar (0) or similar (1), and the second one likewise.
    """

    tasks: tuple[str, ...]
    dilations: tuple[int, ...]
    images: int
    table: Tensor

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of tasks."""
        return list(combinations(self.tasks, 2))


def matched_similar(table: Tensor) -> Tensor:
    """Of the pairs that one or both tasks call similar, the share that both do: (..., 2, 2) -> (...), 0 / 0 = nan."""
    table = table.double()
    return table[..., 1, 1] / (table.sum(dim=(-2, -1)) - table[..., 0, 0])


def matched_dissimilar(table: Tensor) -> Tensor:
    """Of the pairs that one or both tasks call dissimilar, the share that both do; see `matched_similar`."""
    table = table.double()
    return table[..., 0, 0] / (table.sum(dim=(-2, -1)) - table[..., 1, 1])


def correspondence(table: Tensor) -> Tensor:
    """Mean of `matched_similar` and `matched_dissimilar`: both kinds of pairs weigh the same, however rare they are."""
    return (matched_similar(table) + matched_dissimilar(table)) / 2


def agreement(table: Tensor) -> Tensor:
    """Share of all pairs on which the tasks agree: (..., 2, 2) -> (...)."""
    table = table.double()
    return (table[..., 0, 0] + table[..., 1, 1]) / table.sum(dim=(-2, -1))


def kappa(table: Tensor) -> Tensor:
    """Cohen's kappa: agreement beyond that of independent tasks, 1 at most; see `independent`."""
    expected = agreement(independent(table))
    return (agreement(table) - expected) / (1 - expected)


def independent(table: Tensor) -> Tensor:
    """What would be counted, (..., 2, 2) float64, if tasks with the same shares of similar pairs were independent."""
    table = table.double()
    total = table.sum(dim=(-2, -1), keepdim=True)
    return table.sum(dim=-1, keepdim=True) * table.sum(dim=-2, keepdim=True) / total


def affinities_of(
    tasks: Mapping[str, TaskSpec], thresholds: Mapping[str, float] | None = None
) -> dict[str, PixelAffinity]:
    """Task -> when its pixels are similar.

    Args:
        tasks: two or more.
        thresholds: of some of them, instead of their own.

    Raises:
        UserError: fewer than two tasks, one without affinity, or a threshold of a task that has none or is not there.
    """
    thresholds = thresholds or {}
    found = {}
    for name, spec in tasks.items():
        if spec.affinity is None:
            raise UserError(
                f"tasks: '{name}' does not say when two pixels are similar; set affinity=PixelAffinity(...) of its "
                "TaskSpec, or leave it out"
            )
        found[name] = spec.affinity.with_threshold(thresholds[name], name) if name in thresholds else spec.affinity
    strange = next((name for name in thresholds if name not in found), None)
    if strange is not None:
        raise UserError(f"thresholds names '{strange}', which is not compared; there are {', '.join(found)}")
    if len(found) < 2:
        raise UserError(f"{', '.join(found) or 'no task'} cannot be compared with another; name two or more tasks")
    return found


def count_affinities(
    images: DenseImages,
    dilations: Sequence[int],
    *,
    kernel: int = 3,
    thresholds: Mapping[str, float] | None = None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> AffinityCounts:
    """Read the labels of all images once and count.

    Args:
        images: with two or more tasks, all of which have affinities.
        dilations: of the kernel, in pixels of the labels as they are stored.
        kernel: side of the kernel, an odd number; ``kernel=3`` compares every pixel with 8 others.
        thresholds: see :func:`affinities_of`.
        workers: processes that read and count; 0: this one.
        progress: called with the number of images done.

    Raises:
        UserError: what `affinities_of` and `check_pattern` refuse, a wrong file, or a dilation that no image has room
            for.
    """
    check_pattern(kernel, dilations)
    tasks = tuple(affinities_of(images.tasks, thresholds))
    make = _ImageCounts(images, dict(thresholds or {}), tuple(dilations), kernel)
    pairs = len(tasks) * (len(tasks) - 1) // 2
    table = torch.zeros(pairs, len(dilations), 2, 2, dtype=torch.int64)
    loader = WorkerLoader(make, start=0, end=len(images), workers=workers, what="reads and compares labels")
    for done, counts in enumerate(loader, start=1):
        table += counts
        if progress is not None:
            progress(done)
    found = AffinityCounts(tasks, tuple(dilations), len(images), table)
    for pair, number in (table.sum(dim=(-2, -1)) == 0).nonzero().tolist():
        first, second = found.pairs[pair]
        raise UserError(
            f"dilations: at {dilations[number]} pixels no pair of pixels has labels of both '{first}' and '{second}'; "
            "use smaller ones"
        )
    return found


def check_pattern(kernel: int, dilations: Sequence[int]) -> None:
    """Refuse kernels and dilations that make no sense.

    Raises:
        UserError: naming the key.
    """
    if kernel < 3 or kernel % 2 == 0:
        raise UserError(f"kernel={kernel} must be an odd number of at least 3")
    if not dilations or min(dilations) < 1 or len(set(dilations)) < len(dilations):
        raise UserError(f"dilations={list(dilations)} must be one or more different numbers of at least 1")


def image_counts(
    targets: Mapping[str, Target], affinities: Mapping[str, PixelAffinity], dilations: Sequence[int], kernel: int
) -> Tensor:
    """`AffinityCounts.table` of one image.

    Args:
        targets: task -> labels, all (H, W).
        affinities: see :func:`affinities_of`.
        dilations: see :func:`count_affinities`.
        kernel: see :func:`count_affinities`.
    """
    tasks = list(affinities)
    first, second = torch.combinations(torch.arange(len(tasks))).unbind(dim=1)
    tables = torch.zeros(len(first), len(dilations), 2, 2, dtype=torch.int64)
    height, width = targets[tasks[0]].valid.shape
    for number, dilation in enumerate(dilations):
        for down, right in half_offsets(kernel, dilation):
            if down >= height or abs(right) >= width:
                continue
            valid, similar = [], []
            for task, affinity in affinities.items():
                values = shifted(targets[task].values, down, right)
                both = torch.logical_and(*shifted(targets[task].valid, down, right))
                valid.append(both.flatten())
                similar.append((affinity.similar(*values) & both).flatten())
            of_valid = torch.stack(valid).double()  # sums of products are exact
            of_similar = torch.stack(similar).double()
            all_ = (of_valid @ of_valid.T)[first, second]
            both = (of_similar @ of_similar.T)[first, second]
            cross = of_similar @ of_valid.T  # similar in the row's task, valid in the column's
            one, other = cross[first, second], cross[second, first]
            counts = torch.stack((all_ - one - other + both, other - both, one - both, both), dim=1)
            tables[:, number] += counts.view(-1, 2, 2).round().long()
    return tables


def half_offsets(kernel: int, dilation: int) -> list[tuple[int, int]]:
    """(down, right) from a pixel to the others of its kernel; of two opposite ones one, so that a pair counts once.

    Args:
        kernel: side, odd.
        dilation: pixels between neighbours in the kernel.
    """
    reach = range(-(kernel // 2), kernel // 2 + 1)
    return [(down * dilation, right * dilation) for down in reach for right in reach if (down, right) > (0, 0)]


def shifted(values: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Two views of (..., H, W): of every pair of pixels ``(down, right)`` apart the one, and the other.

    Args:
        values: (..., H, W).
        down: 0 or more, below H.
        right: above -W and below W.
    """
    height, width = values.shape[-2:]
    left = max(0, -right)
    first = values[..., : height - down, left : width - max(0, right)]
    second = values[..., down:, left + right : width - max(0, right) + right]
    return first, second


class _ImageCounts:
    """Counts one image, in whatever process: affinities travel with their tasks, which know how to be sent."""

    def __init__(self, images: DenseImages, thresholds: dict[str, float], dilations: tuple[int, ...], kernel: int):
        self.images, self.thresholds, self.dilations, self.kernel = images, thresholds, dilations, kernel

    def __call__(self, index: int) -> Tensor:
        affinities = affinities_of(self.images.tasks, self.thresholds)
        return image_counts(self.images.read(index).targets, affinities, self.dilations, self.kernel)
