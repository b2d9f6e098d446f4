"""Augmented training batches: which images a step sees, and what happens to them, is a function of (seed, step)."""

from __future__ import annotations

from polyscene.runtime.distributed import World
from polyscene.runtime.sampling import StepIndices
from polyscene.runtime.worker_loader import WorkerLoader

from .data.records import DenseImages
from .data.transforms import Augmentation, Batch, augment, collate


def train_batches(
    images: DenseImages,
    recipe: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    end_step: int,
    workers: int,
    world: World,
) -> WorkerLoader[Batch]:
    """This process's share of the batches of steps ``start_step`` .. ``end_step - 1``.

    The same for any number of workers and any first step. The last images of an epoch that do not fill a batch are
    left out; another epoch has another order.

    Args:
        images: the training split, with the tasks to be trained.
        recipe: augmentation.
        batch_size: global, over all processes.
        seed: of the order and of the augmentation.
        start_step: first step wanted.
        end_step: step after the last one.
        workers: processes that read and augment; 0 does it in this process.
        world: the processes of the run.

    Raises:
        UserError: numbers that do not fit. While iterating: a file is missing or wrong, or a worker died.
    """
    indices = StepIndices(len(images), batch_size=batch_size, rank=world.rank, world_size=world.size, seed=seed)
    return WorkerLoader(
        _Batches(images, recipe, indices),
        start=start_step,
        end=end_step,
        workers=workers,
        pin_memory=world.device.type == "cuda",
        pack=True,
    )


class _Batches:
    """Makes the batch of a step."""

    def __init__(self, images: DenseImages, recipe: Augmentation, indices: StepIndices):
        self.images, self.recipe, self.indices = images, recipe, indices

    def __call__(self, step: int) -> Batch:
        epoch, indices = self.indices(step)
        images, seed = self.images, self.indices.seed
        return collate(
            [
                augment(images.read(index), images.tasks, self.recipe, seed=seed, epoch=epoch, index=index)
                for index in indices.tolist()
            ]
        )
