"""Raw images in batches: which images a step sees is a function of (seed, step), and of nothing that happened before.

A run that is killed and started again at any step, with any number of worker processes, gets the batches it would have
got. Worker processes only read, decode and draw view parameters; pixels are rendered later, on the model's device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage
from polyscene.runtime.randomness import uniforms
from polyscene.runtime.sampling import StepIndices
from polyscene.runtime.worker_loader import WorkerLoader

from .batches import ImageBatch
from .image_readers import FileReader, ImageReader
from .sources import ImageSource

MAX_REPLACEMENTS = 64
"""Other images tried in the place of one that cannot be read."""

_REPLACEMENT_STREAM = 1102

SampleViews = Callable[[int, Tensor, Tensor], Any]

MakeBatch = Callable[[int], ImageBatch]


@dataclass(frozen=True)
class ImageSupply:
    """Where the pixels of a run's images come from; see `cached_images`.

    Attributes:
        reader: what the workers do.
        finish: what the main process then does to a batch, if anything; its second argument makes the batch of a step
            from the image files.
    """

    reader: ImageReader
    finish: Callable[[ImageBatch, MakeBatch], ImageBatch] | None = None


def image_loader(
    source: ImageSource,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    start_step: int,
    end_step: int,
    workers: int,
    sample_views: SampleViews,
    pin_memory: bool = False,
    prefetch: int = 2,
    supply: ImageSupply | None = None,
) -> ImageLoader:
    """Batches of the steps ``start_step`` .. ``end_step - 1`` of a run, for one of its processes.

    Which images a step sees, `polyscene.runtime.sampling.StepIndices` says. Workers live as long as the run, across
    epochs. A worker prepares whole batches: up to ``workers * prefetch`` raw batches wait in memory (256 images of
    640x480: 0.24 GB each).

    Args:
        source: the images.
        batch_size: global, over all processes.
        rank: this process.
        world_size: number of processes.
        seed: of the order of the images and of replacements.
        start_step: first step wanted.
        end_step: step after the last one.
        workers: processes that decode; 0 decodes in this process.
        sample_views: ``(epoch, indices (B,), sizes (B, 2)) -> parameters``, called in the worker; must be picklable
            where processes are spawned. Its result should be able to ``pin_memory()`` and ``to(device, non_blocking)``.
        pin_memory: copy batches into page-locked memory; ignored without a GPU.
        prefetch: batches prepared ahead by every worker.
        supply: where the pixels come from; None: the files.

    Raises:
        UserError: numbers that make no sense. While iterating: an image and all its replacements are unreadable, or a
            worker process died.
    """
    indices = StepIndices(len(source), batch_size=batch_size, rank=rank, world_size=world_size, seed=seed)
    from_files = FileReader(source)
    supply = supply or ImageSupply(from_files)
    loader = WorkerLoader(
        _Batches(source, indices, sample_views, supply.reader),
        start=start_step,
        end=end_step,
        workers=workers,
        pin_memory=pin_memory,
        prefetch=prefetch,
    )
    return ImageLoader(loader, supply, _Batches(source, indices, sample_views, from_files))


class ImageLoader:
    """Batches that workers made, finished in the main process."""

    def __init__(self, loader: WorkerLoader[ImageBatch], supply: ImageSupply, from_files: MakeBatch):
        self._loader, self._supply, self._from_files = loader, supply, from_files

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        finish = self._supply.finish
        with closing(iter(self._loader)) as batches:
            for batch in batches:
                yield batch if finish is None else finish(batch, self._from_files)


class _Batches:
    """Makes the batch of a step."""

    def __init__(self, source: ImageSource, indices: StepIndices, sample_views: SampleViews, reader: ImageReader):
        self.source, self.indices, self.sample_views, self.reader = source, indices, sample_views, reader

    def __call__(self, step: int) -> ImageBatch:
        epoch, indices = self.indices(step)
        images, shown, unreadable = [], [], {}
        for index in indices.tolist():
            image, found = self._read_or_replace(index, unreadable)
            images.append(image)
            shown.append(found)
        gathered = self.reader.gather(images)
        labels = self.source.labels
        asked = torch.from_numpy(indices.copy())
        return ImageBatch(
            **gathered._asdict(),
            indices=asked,
            labels=None if labels is None else torch.from_numpy(labels[shown]),
            shown=torch.tensor(shown, dtype=torch.int64),
            unreadable=list(unreadable.items()),
            step=step,
            epoch=epoch,
            params=self.sample_views(epoch, asked, gathered.sizes),
        )

    def _read_or_replace(self, index: int, unreadable: dict[int, str]) -> tuple[Any, int]:
        """The image, or the first readable one of a series that depends on (seed, index); and its index.

        What cannot be read is added to ``unreadable``.
        """
        for candidate in _candidates(self.indices.seed, index, len(self.source)):
            try:
                return self.reader.read(candidate), candidate
            except UnreadableImage as error:
                unreadable[candidate] = f"{_one_field(self.source.name(candidate))}\t{_one_field(error.reason)}"
        name, reason = unreadable[index].split("\t")
        tried = len(set(_candidates(self.indices.seed, index, len(self.source))))
        raise UserError(
            f"'{name}' in '{self.source.root}' cannot be read ({reason}), and neither can any of {tried - 1} others "
            "tried in its place; repair or remove such images, or check that the disk is there"
        )


def _candidates(seed: int, index: int, count: int) -> Iterator[int]:
    """An image, then the images to show instead, drawn with (seed, index)."""
    yield index
    draws = uniforms(seed, 0, np.array([index]), _REPLACEMENT_STREAM, MAX_REPLACEMENTS)[0]
    others = (draws * count).astype(np.int64).tolist()
    yield from (other for other in dict.fromkeys(others) if other != index)


def _one_field(text: str) -> str:
    return " ".join(text.split())


class UnreadableLog:
    """The images that could not be decoded, each once, in a text file; too many end the run.

    The file has a line ``name<TAB>reason`` for each image. It is read back when a run goes on, so that the share counts
    all images ever met; delete it after repairing the images.
    """

    def __init__(self, path: str | os.PathLike[str], total: int, max_share: float, *, write: bool = True):
        """Open the list of a run.

        Args:
            path: the file; it appears with the first unreadable image.
            total: number of images of the run.
            max_share: share of them, 0..1, that may be unreadable.
            write: False in all processes but one, which only count.
        """
        self.path = os.fspath(path)
        self.total = total
        self.max_share = max_share
        self.write = write
        self.names = self._read_back()

    def __len__(self) -> int:
        return len(self.names)

    def add(self, entries: Iterable[tuple[int, str]]) -> None:
        """Note unreadable images, known or new: ``ImageBatch.unreadable``, gathered from all processes.

        Raises:
            UserError: more than ``max_share`` of all images are unreadable, or the file cannot be written.
        """
        lines = {text.split("\t")[0]: text for _, text in entries}
        new = {name: text for name, text in lines.items() if name not in self.names}
        self.names.update(new)
        if new and self.write:
            self._append("".join(f"{text}\n" for text in new.values()))
        share = len(self.names) / self.total
        if lines and share > self.max_share:
            raise UserError(
                f"{len(self.names)} of {self.total} images ({share:.2%}) cannot be decoded, more than "
                f"data.max_unreadable={self.max_share:g}; they are listed in '{self.path}': repair or remove them and "
                "delete that file, or raise data.max_unreadable"
            )

    def _read_back(self) -> set[str]:
        try:
            with open(self.path, "rb+" if self.write else "rb") as file:
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                if self.write and len(whole) < len(content):
                    file.truncate(len(whole))  # a line that a kill cut short; its image will be met again
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"cannot read '{self.path}': {error.strerror}; check its permissions") from error
        return {line.split("\t")[0] for line in os.fsdecode(whole).splitlines()}

    def _append(self, text: str) -> None:
        try:
            with open(self.path, "ab") as file:
                file.write(os.fsencode(text))
        except OSError as error:
            raise UserError(f"cannot write '{self.path}': {error.strerror}; free some space") from error
