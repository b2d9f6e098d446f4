"""The work that views.py measures: of a worker, of a whole path, of its stages, of a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from unittest import mock

import numpy as np
import torch
from published_views import PublishedDataset, PublishedViews
from ratios import spread, turned
from torch.utils.data import DataLoader

from polyscene.runtime.images import decode_image, read_image
from polyscene.ssl.batches import pack_images
from polyscene.ssl.loading import ImageSupply, image_loader
from polyscene.ssl.sources import ImageSource
from polyscene.ssl.views import colour, render
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.render import render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

AUGMENTATIONS = ("standard", "mix")
WARM_UP_BATCHES = 2
FOREVER = 10**9


@dataclass(frozen=True)
class Setting:
    """What all measurements share.

    Attributes:
        batch_size: images a batch, on the host.
        batches: measured in a round, of every contestant.
        rounds: in which all take turns.
        seed: of the views.
        cache_side: short side of cached images, pixels; at least that of the photos, so that nothing is reduced.
    """

    batch_size: int
    batches: int
    rounds: int
    seed: int
    cache_side: int


def view_spec(augmentation: str) -> ViewSpec:
    """The recipe."""
    return ViewSpec(CropGroup(2, 160, (0.2, 1.0)), CropGroup(4, 96, (0.05, 0.14)), augmentation=augmentation)


# What a worker does


class StampedSampling:
    """`sample_views`, and the processor time of this process so far in seconds."""

    def __init__(self, seed: int, spec: ViewSpec):
        self.seed, self.spec = seed, spec

    def __call__(self, epoch: int, indices, sizes) -> tuple[object, float]:
        return sample_views(self.seed, epoch, indices, sizes, self.spec), time.process_time()


def published_worker(source: ImageSource, augmentation: str, setting: Setting) -> float:
    """Processor time of the published pipeline's worker for one image, seconds."""
    batches = WARM_UP_BATCHES + setting.batches + 1
    paths = [source.path(i) for i in range(len(source))]
    data = PublishedDataset(paths, batches * setting.batch_size, view_spec(augmentation))
    loader = DataLoader(data, setting.batch_size, num_workers=1, generator=torch.Generator().manual_seed(setting.seed))
    return _seconds_an_image([float(stamps[0]) for _, stamps in loader], setting)


def our_worker(source: ImageSource, supply: ImageSupply, augmentation: str, setting: Setting) -> float:
    """Processor time of our worker for one image, seconds."""
    batches = WARM_UP_BATCHES + setting.batches + 1
    sampling = StampedSampling(setting.seed, view_spec(augmentation))
    loader = _loader(source, supply, sampling, setting, workers=1, end=batches)
    return _seconds_an_image([batch.params[1] for batch in loader], setting)


def _seconds_an_image(stamps: list[float], setting: Setting) -> float:
    """From processor time at the same place of consecutive batches, the first few left out."""
    measured = stamps[WARM_UP_BATCHES:]
    return (measured[-1] - measured[0]) / ((len(measured) - 1) * setting.batch_size)


def _loader(source: ImageSource, supply: ImageSupply, sampling, setting: Setting, *, workers: int, end: int):
    return image_loader(
        source,
        batch_size=setting.batch_size,
        rank=0,
        world_size=1,
        seed=setting.seed,
        start_step=0,
        end_step=end,
        workers=workers,
        sample_views=sampling,
        supply=supply,
    )


# The whole path in one process


def published_batches(source: ImageSource, augmentation: str, setting: Setting) -> Iterator[None]:
    """Makes a batch of views at a time."""
    paths = [source.path(i) for i in range(len(source))]
    data = PublishedDataset(paths, FOREVER, view_spec(augmentation))
    loader = DataLoader(data, setting.batch_size, generator=torch.Generator().manual_seed(setting.seed))
    for _ in loader:
        yield


def our_batches(source: ImageSource, augmentation: str, setting: Setting) -> Iterator[None]:
    """Makes a batch of views at a time, from files."""
    spec = view_spec(augmentation)
    for batch in count():
        indices = _indices(batch, source, setting)
        images = [read_image(source.path(i)) for i in indices]
        params = sample_views(setting.seed, batch, indices, [image.shape[1:] for image in images], spec)
        render_views(images, params, spec, "cpu")
        yield


def our_cached_batches(source: ImageSource, supply: ImageSupply, augmentation: str, setting: Setting) -> Iterator[None]:
    """The same, from decoded images in this process."""
    spec = view_spec(augmentation)
    for batch in _loader(source, supply, partial(_sample, setting.seed, spec), setting, workers=0, end=FOREVER):
        render_views(batch.images(), batch.params, spec, "cpu")
        yield


def _indices(batch: int, source: ImageSource, setting: Setting) -> list[int]:
    first = batch * setting.batch_size
    return [i % len(source) for i in range(first, first + setting.batch_size)]


def _sample(seed: int, spec: ViewSpec, epoch: int, indices, sizes):
    return sample_views(seed, epoch, indices, sizes, spec)


def timed(batches: Iterator[None], setting: Setting) -> tuple[float, float]:
    """Processor and wall time for one image, seconds."""
    used, started = time.process_time(), time.perf_counter()
    for _ in islice(batches, setting.batches):
        pass
    images = setting.batches * setting.batch_size
    return (time.process_time() - used) / images, (time.perf_counter() - started) / images


# Where it goes


class Stages:
    """Processor time by stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.process_time()

    def start(self) -> None:
        """What has passed so far belongs to nothing."""
        self.last = time.process_time()

    def lap(self, stage: str) -> None:
        """What has passed since the last call belongs to a stage."""
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now

    def timed(self, stage: str, function: Callable, before: str) -> Callable:
        """The function as a stage; what passed before each call belongs to another."""

        def call(*arguments):
            self.lap(before)
            result = function(*arguments)
            self.lap(stage)
            return result

        return call


def published_stages(source: ImageSource, augmentation: str, setting: Setting) -> dict[str, float]:
    """Stage -> seconds an image."""
    make, stages = PublishedViews(view_spec(augmentation)), Stages()
    number = setting.batches * setting.batch_size
    for i in range(number):
        stages.start()
        make(source.path(i % len(source)), stages.lap)
    return {stage: seconds / number for stage, seconds in stages.seconds.items()}


def our_stages(source: ImageSource, augmentation: str, setting: Setting) -> dict[str, float]:
    """Stage -> seconds an image."""
    spec, stages = view_spec(augmentation), Stages()
    with (
        mock.patch.object(
            render, "resize_crop", stages.timed("crop and resize", render.resize_crop, "normalise and store")
        ),
        mock.patch.object(colour, "apply", stages.timed("colour", colour.apply, "normalise and store")),
    ):
        for batch in range(setting.batches):
            indices = _indices(batch, source, setting)
            images = []
            for i in indices:
                stages.start()
                data = source.path(i).read_bytes()
                stages.lap("read")
                images.append(decode_image(data, source.name(i)))
                stages.lap("decode")
            pixels, sizes = pack_images(images)
            stages.lap("gather the batch")
            params = sample_views(setting.seed, batch, np.array(indices), sizes, spec)
            stages.lap("draw parameters")
            flat = pixels.split(sizes.prod(dim=1).mul(3).tolist())
            packed = [x.view(h, w, 3).permute(2, 0, 1) for x, (h, w) in zip(flat, sizes.tolist())]
            stages.start()
            render_views(packed, params, spec, "cpu")
            stages.lap("normalise and store")
    number = setting.batches * setting.batch_size
    return {stage: seconds / number for stage, seconds in stages.seconds.items()}


# On a GPU


def measure_device(source: ImageSource, supply: ImageSupply, batch_size: int, setting: Setting) -> dict:
    """Rendering of batches that are on the GPU: images a second, the host's share, memory, cost of the mix."""
    device, rounds = torch.device("cuda"), {a: [] for a in AUGMENTATIONS}
    launched: dict[str, list[float]] = {a: [] for a in AUGMENTATIONS}
    large = Setting(batch_size, setting.batches, setting.rounds, setting.seed, setting.cache_side)
    streams = {}
    for a in AUGMENTATIONS:
        sampling = partial(_sample, setting.seed, view_spec(a))
        streams[a] = iter(_loader(source, supply, sampling, large, workers=0, end=FOREVER))
    torch.cuda.reset_peak_memory_stats()
    for number in range(setting.rounds + 2):
        for a in turned(rounds, number):
            moved = [batch.to(device) for batch in islice(streams[a], setting.batches)]
            images = [batch.images() for batch in moved]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            started = time.perf_counter()
            for batch, pixels in zip(moved, images):
                render_views(pixels, batch.params, view_spec(a), device)
            launch = time.perf_counter() - started
            end.record()
            torch.cuda.synchronize()
            if number >= 2:
                rounds[a].append(begin.elapsed_time(end) / 1e3 / (setting.batches * batch_size))
                launched[a].append(launch / (setting.batches * batch_size))
    return {
        "batch_size": batch_size,
        "images_per_second": {a: round(1 / statistics.median(found), 1) for a, found in rounds.items()},
        "ms_a_batch": {a: round(1e3 * batch_size * statistics.median(found), 3) for a, found in rounds.items()},
        "launch_ms_a_batch": {a: round(1e3 * batch_size * statistics.median(x), 3) for a, x in launched.items()},
        "mix_over_standard": spread([m / s for m, s in zip(rounds["mix"], rounds["standard"])]),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }
