"""Raw images in batches: which images a step sees is a function of (seed, step), and of nothing that happened before.

A run that is killed and started again at any step, with any number of worker processes, gets the batches it would have
got. Worker processes only read, decode and draw view parameters; pixels are rendered later, on the model's device.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage, read_image

from .batches import ImageBatch, pack_images
from .sources import ImageSource
from .views.randomness import uniforms

MAX_REPLACEMENTS = 64
"""Other images tried in the place of one that cannot be read."""

# Streams of random numbers; those of the views count from 0, those of the subsets from 1001.
_ORDER_STREAM, _REPLACEMENT_STREAM = 1101, 1102

SampleViews = Callable[[int, Tensor, Tensor], Any]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in one pass over the images; the rest of the images waits for another epoch's order.

    Raises:
        UserError: not even one batch.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    if images < batch_size:
        raise UserError(f"{images} images do not fill one batch of {batch_size}; lower batch_size or add images")
    return images // batch_size


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits the images: (count,) int64, a permutation.

    Images are sorted by a hash of (seed, epoch, index), so the order does not hang on a library's shuffling algorithm.
    """
    return np.argsort(uniforms(seed, epoch, np.arange(count), _ORDER_STREAM, 1)[:, 0], kind="stable")


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
) -> ImageLoader:
    """Batches of the steps ``start_step`` .. ``end_step - 1`` of a run, for one of its processes.

    Step s is batch ``s % steps_per_epoch`` of epoch ``s // steps_per_epoch``; of every global batch, process r gets the
    r-th of ``world_size`` equal consecutive parts. Workers live as long as the run, across epochs. A worker prepares
    whole batches: up to ``workers * prefetch`` raw batches wait in memory (256 images of 640x480: 0.24 GB each).

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

    Raises:
        UserError: numbers that make no sense. While iterating: an image and all its replacements are unreadable, or a
            worker process died.
    """
    for name, value, least in (("workers", workers, 0), ("prefetch", prefetch, 1), ("start_step", start_step, 0)):
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")
    if batch_size % world_size:
        raise UserError(f"batch_size={batch_size} is not a multiple of {world_size} processes; change one of them")
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} of {world_size} processes does not exist")
    steps_per_epoch(len(source), batch_size)
    dataset = _StepDataset(source, batch_size, rank, world_size, seed, sample_views)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start_step, max(start_step, end_step)),
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker if workers else None,
        # Without a generator of its own, every new loader would advance torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
    return ImageLoader(loader)


class ImageLoader:
    """What `image_loader` returns: iterate over it for `ImageBatch`es; its length is the number of steps."""

    def __init__(self, loader: DataLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        iterator = self._start()
        try:
            for item in iterator:
                if isinstance(item, _Failure):
                    raise UserError(item.message)
                yield item
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"a process that decodes images died ({first}); mostly memory ran out: lower data.workers or "
                "batch_size, or ask for more memory"
            ) from error
        finally:
            if hasattr(iterator, "_shutdown_workers"):  # now, not when the last traceback is forgotten
                iterator._shutdown_workers()

    def _start(self) -> Iterator[ImageBatch | _Failure]:
        # torch's handler of SIGCHLD raises the death of a worker in the middle of whatever the main process does just
        # then. The iterator also looks after its workers whenever it waits for a batch, where the error can be caught.
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if in_main_thread and hasattr(signal, "SIGCHLD") else None
        iterator = iter(self._loader)
        if before is not None:
            # Another loader may have installed torch's handler earlier; it stays for good, so it is taken out here.
            torchs = getattr(before, "__module__", "") == "torch.utils.data._utils.signal_handling"
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if torchs else before)
        return iterator


class _Failure:
    """A `UserError` on its way out of a worker, which would wrap the exception itself into its traceback."""

    def __init__(self, message: str):
        self.message = message

    def pin_memory(self) -> _Failure:
        return self


class _StepDataset(Dataset):
    """Item s is the batch of step s."""

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        sample_views: SampleViews,
    ):
        self.source = source
        self.batch_size = batch_size
        self.rank = rank
        self.local_size = batch_size // world_size
        self.seed = seed
        self.sample_views = sample_views
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __getitem__(self, step: int) -> ImageBatch | _Failure:
        try:
            return self._batch(step)
        except UserError as error:
            return _Failure(str(error))

    def _batch(self, step: int) -> ImageBatch:
        epoch, place = divmod(step, len(self.source) // self.batch_size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.source))
        start = place * self.batch_size + self.rank * self.local_size
        indices = self._order[start : start + self.local_size]
        images, shown, unreadable = [], [], {}
        for index in indices.tolist():
            image, found = self._read_or_replace(index, unreadable)
            images.append(image)
            shown.append(found)
        pixels, sizes = pack_images(images)
        labels = self.source.labels
        asked = torch.from_numpy(indices.copy())
        return ImageBatch(
            pixels=pixels,
            sizes=sizes,
            indices=asked,
            labels=None if labels is None else torch.from_numpy(labels[shown]),
            shown=torch.tensor(shown, dtype=torch.int64),
            unreadable=list(unreadable.items()),
            step=step,
            epoch=epoch,
            params=self.sample_views(epoch, asked, sizes),
        )

    def _read_or_replace(self, index: int, unreadable: dict[int, str]) -> tuple[Tensor, int]:
        """The image, or the first readable one of a series that depends on (seed, index); and its index.

        What cannot be read is added to ``unreadable``.
        """
        for candidate in _candidates(self.seed, index, len(self.source)):
            try:
                return read_image(self.source.path(candidate)), candidate
            except UnreadableImage as error:
                unreadable[candidate] = f"{_one_field(self.source.name(candidate))}\t{_one_field(error.reason)}"
        name, reason = unreadable[index].split("\t")
        tried = len(set(_candidates(self.seed, index, len(self.source))))
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


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    # Signals that ask a run to stop reach all its processes; the main one finishes its step, for which it still needs
    # the workers. They leave when it does.
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent_only, daemon=True).start()
    torch.set_num_threads(1)


def _obey_parent_only() -> None:
    # Python ends its remaining children with SIGTERM and waits for them: ignored altogether, both would wait for ever.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


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
