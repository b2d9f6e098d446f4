"""Batches from every cache, made by several processes: ``cached_batches.py DATA FOLDER`` under torchrun."""

import sys
from pathlib import Path

import torch
from loading_helpers import batches_of
from rich.console import Console

from polyscene.runtime.distributed import join_world
from polyscene.ssl import cached_images, packing
from polyscene.ssl.sources import open_source

data, folder = sys.argv[1], Path(sys.argv[2])
source = open_source("folder", data)
packed = []
pack = packing.pack_source
cached_images.pack_source = lambda *args, **options: packed.append(1) or pack(*args, **options)

with join_world("cpu") as world:
    for kind, kept in (("memory", None), ("device", None), ("disk", folder), ("memory", folder), ("device", folder)):
        packed.clear()
        plan = cached_images.plan_cache(kind, source, side=384, cache_dir=kept, workers=1, world=world)
        with cached_images.open_supply(plan, world, say=lambda line: None, console=Console(quiet=True)) as supply:
            batches = batches_of(source, end=7, workers=1, rank=world.rank, world=world.size, supply=supply)
        times = sum(map(len, world.gather_objects(packed)))
        pixels = [[image.flatten() for image in batch.images()] for batch in batches]
        torch.save(pixels, folder / f"{kind}-{kept is None}-{world.rank}.pt")
        if world.is_main:
            print(kind, kept is None, times, flush=True)
