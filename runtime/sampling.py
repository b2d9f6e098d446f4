"""Which images a step sees: a function of (seed, step), and of nothing that happened before."""

from __future__ import annotations

import numpy as np

from .errors import UserError
from .randomness import uniforms

# Streams of random numbers: those of the views count from 0, those of the subsets from 1001, of the loading from 1101.
_ORDER_STREAM = 1101


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


class StepIndices:
    """The images of every step of a run, for one of its processes.

    Step s is batch ``s % steps_per_epoch`` of epoch ``s // steps_per_epoch``; of every global batch, process r gets the
    r-th of ``world_size`` equal consecutive parts.

    Args:
        count: images there are.
        batch_size: global, over all processes.
        rank: this process.
        world_size: number of processes.
        seed: of the order.

    Raises:
        UserError: processes do not divide the batch, or the images do not fill one.
    """

    def __init__(self, count: int, *, batch_size: int, rank: int, world_size: int, seed: int):
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} is not a multiple of {world_size} processes; change one of them")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size} processes does not exist")
        self.count, self.batch_size, self.rank, self.seed = count, batch_size, rank, seed
        self.local_size = batch_size // world_size
        self.steps_per_epoch = steps_per_epoch(count, batch_size)
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __call__(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a step, from 0, and its images: (local_size,) int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.count)
        start = place * self.batch_size + self.rank * self.local_size
        return epoch, self._order[start : start + self.local_size]
