"""Where a pretraining's pixels come from, as its config says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.run import RunDirectory
from polyscene.ssl.cached_images import CachePlan, open_supply, plan_cache
from polyscene.ssl.device_decoding import DeviceDecoder, EncodedReader
from polyscene.ssl.loading import ImageSupply
from polyscene.ssl.sources import ImageSource

from .pretrain_config import PretrainConfig

CACHE_FOLDER = "packed_images"

ImagePlan = CachePlan | DeviceDecoder


def plan_images(config: PretrainConfig, source: ImageSource, world: World) -> ImagePlan:
    """What `image_supply` will do; a collective call.

    Raises:
        UserError: no room for the cache; no GPU to decode on.
    """
    data = config.data
    if data.decode == "device":
        if world.device.type != "cuda":
            raise UserError("data.decode=device needs a GPU, and this run is on the CPU; use data.decode=host")
        return DeviceDecoder(world.device)
    return plan_cache(
        data.cache,
        source,
        side=data.cache_side,
        cache_dir=cache_dir(config),
        workers=data.workers,
        world=world,
    )


@contextmanager
def image_supply(plan: ImagePlan, source: ImageSource, world: World, run: RunDirectory) -> Iterator[ImageSupply]:
    """The images as planned; a collective call.

    Raises:
        UserError: the cache cannot be written or read.
    """
    if isinstance(plan, DeviceDecoder):
        yield ImageSupply(EncodedReader(source), plan)
        return
    with open_supply(plan, world, say=run.log, console=run.console) as supply:
        yield supply


def cache_dir(config: PretrainConfig) -> Path | None:
    """Folder of packed images.

    By default that of `disk` lies beside the run directory: on a file system that was chosen for large files (a home
    folder is not), and the same for all runs of a study.
    """
    if config.data.cache_dir is not None:
        return Path(config.data.cache_dir).expanduser()
    return Path(config.out).absolute().parent / CACHE_FOLDER if config.data.cache == "disk" else None
