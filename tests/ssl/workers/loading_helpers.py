"""What the tests of the loader share."""

from dataclasses import dataclass
from pathlib import Path

import torch

from polyscene.ssl.batches import ImageBatch
from polyscene.ssl.loading import image_loader

IMAGES = 23
WORKERS = Path(__file__).parent


@dataclass
class Params:
    values: torch.Tensor
    device: str = "cpu"

    def to(self, device, non_blocking=False):
        return Params(self.values.to(device), str(device))


def sample(epoch, indices, sizes) -> Params:
    return Params(torch.cat([torch.full((len(indices), 1), epoch), indices[:, None], sizes], dim=1))


def batches_of(source, start=0, end=9, workers=0, rank=0, world=1, batch_size=4, seed=0, **options):
    options = {"sample_views": sample, **options}
    return list(
        image_loader(
            source,
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            seed=seed,
            start_step=start,
            end_step=end,
            workers=workers,
            **options,
        )
    )


def assert_equal(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "sizes", "indices", "labels", "shown"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    torch.testing.assert_close(one.params.values, other.params.values, rtol=0, atol=0)
    assert (one.step, one.epoch, one.unreadable) == (other.step, other.epoch, other.unreadable)
