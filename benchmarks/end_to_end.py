"""Training from image files as a fraction of training from ready views.

    python benchmarks/end_to_end.py [--preset cpu|gpu] [--images FOLDER] [--cases r18_96_48 ...] [--rounds 3]

``ready`` repeats the training step on views that were rendered before, on the device: the rate that nothing which
delivers images can exceed. The others train as `polyscene pretrain` does (`ssl.engine.train`, real loader, rendering,
metrics) with the same step: from JPEG files with some numbers of workers, or from decoded images (``data.cache``).
A contestant's turn is two windows of some steps, of which the second counts, so that workers have started and what they
had in stock is used up or steady. All take turns; ``fraction`` is the median over the rounds of the ratio to ``ready``
within a round, quartiles in brackets; ``wait`` the share of the time in which training waited for a batch.

A+ mix on constrained multi-crop, neighbour loss, full queue. On a CPU: ResNet-18, 16 images, fp32, views of 160 and 96
pixels as published, and of 96 and 48. On a GPU: ResNet-50, 256 images, bf16, views of 160 and 96 pixels, 16 workers,
also with the standard augmentation. Without --images, photo-like files of 640x480 pixels, about as large as COCO's, are
made first. Printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from photos import write_photos
from ratios import shown, spread, turned
from record import (
    add_threads,
    check_images,
    choose_cases,
    load,
    machine_of_preset,
    make_preset_parser,
    parse_preset,
    write_record,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training_case import LEARNING_RATE, TrainingCase, make_model, make_optimizer

from polyscene.runtime import loop
from polyscene.runtime.allocator import keep_freed_memory
from polyscene.runtime.distributed import World
from polyscene.runtime.run import RunDirectory
from polyscene.ssl.batches import ImageBatch
from polyscene.ssl.cached_images import open_supply, plan_cache
from polyscene.ssl.engine import Schedule, train
from polyscene.ssl.loading import ImageSupply, image_loader
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.sources import ImageSource, open_source
from polyscene.ssl.state import TrainingState
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.render import render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

READY = "ready"
READY_BATCHES = 2


@dataclass(frozen=True)
class Feed:
    """How training gets its images.

    Attributes:
        cache: of `plan_cache`; none: JPEG files.
        workers: processes.
        augmentation: standard or mix.
    """

    cache: str
    workers: int
    augmentation: str = "mix"

    def __str__(self) -> str:
        source = "files" if self.cache == "none" else f"cache {self.cache}"
        extra = "" if self.augmentation == "mix" else f", {self.augmentation}"
        return f"{source}, {self.workers} workers{extra}"


@dataclass(frozen=True)
class Case(TrainingCase):
    """What is trained, and from what.

    Attributes:
        feeds: that are compared.
        steps: in a window.
    """

    feeds: tuple[Feed, ...]
    steps: int


_ON_CPU = (Feed("none", 0), Feed("none", 1), Feed("none", 2), Feed("memory", 1), Feed("device", 1))
_ON_GPU = (Feed("none", 16), Feed("none", 16, "standard"), Feed("memory", 8), Feed("device", 4))
CASES = {
    "cpu": {
        "r18_160_96": Case("resnet18", (160, 96), 16, 4096, "fp32", _ON_CPU, 3),
        "r18_96_48": Case("resnet18", (96, 48), 16, 4096, "fp32", _ON_CPU, 3),
    },
    "gpu": {"r50_160_96": Case("resnet50", (160, 96), 256, 65_536, "bf16", _ON_GPU, 100)},
}
BOUNDS = {"cpu": 0.9, "gpu": 0.95}


def view_spec(case: Case, augmentation: str) -> ViewSpec:
    """The recipe at the case's sizes."""
    large, small = case.sizes
    return ViewSpec(CropGroup(2, large, (0.2, 1.0)), CropGroup(4, small, (0.05, 0.14)), augmentation=augmentation)


class Contest:
    """One network, trained from every feed in turn.

    Args:
        case: what is trained.
        source: the images.
        supplies: cache -> where the pixels come from.
        world: this process and its device.
        seed: of weights and views.
        compile: torch.compile the encoders.
        folder: of a run directory, which gets the metrics.
    """

    def __init__(
        self,
        case: Case,
        source: ImageSource,
        supplies: dict[str, ImageSupply],
        world: World,
        *,
        seed: int,
        compile: bool,
        folder: Path,
    ):
        self.case, self.source, self.supplies, self.world, self.seed = case, source, supplies, world, seed
        model = make_model(case, world.device, seed)
        optimizer = make_optimizer(model)
        self.state = TrainingState(model, optimizer, world, {})
        norm = plan_normalization("auto", 128, case.batch_size, 1)
        self.runner = StepRunner(
            model, optimizer, LossSettings(), norm, world, seed=seed, precision=case.precision, compile=compile
        )
        self.run = RunDirectory(folder, main=True, console=Console(quiet=True), tensorboard=False)
        self.ready = [self._rendered(batch) for batch in self._batches(Feed("none", 0), READY_BATCHES)]

    def turn(self, feed: Feed | None) -> tuple[float, float]:
        """Images a second and percentage of waiting in the second window; None: ready views."""
        return self._turn_of_ready() if feed is None else self._turn_of(feed)

    def _turn_of_ready(self) -> tuple[float, float]:
        for _ in range(2):
            started = time.perf_counter()
            for step in range(self.case.steps):
                output = self.runner.step(self.ready[step % READY_BATCHES], step=step, learning_rate=LEARNING_RATE)
            output.means.tolist()
            seconds = time.perf_counter() - started
        self.runner.settle()
        return self.case.steps * self.case.batch_size / seconds, 0.0

    def _turn_of(self, feed: Feed) -> tuple[float, float]:
        end = 2 * self.case.steps
        schedule = Schedule(
            steps_per_epoch=end,
            total_steps=end,
            end_step=end,
            learning_rate=LEARNING_RATE,
            log_every=self.case.steps,
        )
        self.state.step = 0
        views = view_spec(self.case, feed.augmentation)
        with mock.patch.object(loop, "save_checkpoint"):
            train(self.runner, self.state, self._batches(feed, end), views, schedule, self.run)
        last = json.loads((self.run.path / "metrics.jsonl").read_text().splitlines()[-1])
        return last["images_per_second"], last["data_wait_percent"]

    def _batches(self, feed: Feed, steps: int) -> Iterable[ImageBatch]:
        return image_loader(
            self.source,
            batch_size=self.case.batch_size,
            rank=0,
            world_size=1,
            seed=self.seed,
            start_step=0,
            end_step=steps,
            workers=feed.workers,
            sample_views=partial(_sample, self.seed, view_spec(self.case, feed.augmentation)),
            pin_memory=self.world.device.type == "cuda",
            supply=self.supplies[feed.cache],
        )

    def _rendered(self, batch: ImageBatch) -> list[Tensor]:
        moved = batch.to(self.world.device)
        return render_views(moved.images(), moved.params, view_spec(self.case, "mix"), self.world.device)


def _sample(seed: int, spec: ViewSpec, epoch: int, indices, sizes):
    return sample_views(seed, epoch, indices, sizes, spec)


def measure(contest: Contest, rounds: int, say: Callable[[str], None]) -> dict[str, dict]:
    """Contestant -> images a second, fraction of ready views, waiting."""
    contestants: dict[str, Feed | None] = {READY: None, **{str(feed): feed for feed in contest.case.feeds}}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    waits: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in turned(contestants, number):
            rate, wait = contest.turn(contestants[name])
            rates[name].append(rate)
            waits[name].append(wait)
            say(f"round {number + 1} of {rounds}, {name}: {rate:.1f} images/s")
    return {
        name: {
            "images_per_second": round(statistics.median(found), 2),
            "fraction": spread([own / ready for own, ready in zip(found, rates[READY])]),
            "data_wait_percent": round(statistics.median(waits[name]), 2),
            "images_per_second_of_rounds": [round(rate, 2) for rate in found],
        }
        for name, found in rates.items()
    }


def table(name: str, case: Case, found: dict[str, dict]) -> Table:
    """Contestant, rate, fraction, waiting."""
    large, small = case.sizes
    table = Table(title=f"{name}: {case.arch}, {case.batch_size} images, 2 x {large} + 4 x {small} pixels")
    for column in ("", "images/s", "fraction of ready", "wait, %"):
        table.add_column(column, justify="right" if column else "left")
    for each, values in found.items():
        fraction = shown(values["fraction"], unit="", digits=3)
        table.add_row(each, f"{values['images_per_second']:,.1f}", fraction, f"{values['data_wait_percent']:.1f}")
    return table


def open_supplies(case: Case, source: ImageSource, world: World, side: int, stack: ExitStack) -> dict[str, ImageSupply]:
    """Cache -> pixels, for all caches of a case; nothing is reduced."""
    supplies = {}
    for cache in dict.fromkeys(["none", *(feed.cache for feed in case.feeds)]):
        plan = plan_cache(cache, source, side=side, cache_dir=None, workers=0, world=world)
        quiet = Console(quiet=True)
        supplies[cache] = stack.enter_context(open_supply(plan, world, say=lambda line: None, console=quiet))
    return supplies


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_preset_parser(__doc__, CASES)
    words.add_argument("--cases", nargs="+", choices=[case for cases in CASES.values() for case in cases])
    words.add_argument("--images", type=Path, help="folder of photos; without it some are made")
    words.add_argument("--photos", type=int, help="how many are made; 4 batches if not given")
    words.add_argument("--batch-size", type=int)
    words.add_argument("--steps", type=int, help="in a window")
    words.add_argument("--workers", type=int, nargs="+", help="to train from files with")
    words.add_argument("--rounds", type=int, default=3)
    add_threads(words)
    words.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    least = {"rounds": 1, "threads": 1, "steps": 1, "batch_size": 2, "photos": 1}
    options = parse_preset(words, arguments, script="end_to_end", least=least)
    options.cases = choose_cases(words, options, CASES)
    check_images(words, options.images)
    return options


def chosen_case(name: str, options: argparse.Namespace) -> Case:
    """A case with the options' numbers in place of its own."""
    case = CASES[options.preset][name]
    if options.workers is not None:
        others = tuple(feed for feed in case.feeds if feed.cache != "none")
        case = replace(case, feeds=(*(Feed("none", workers) for workers in options.workers), *others))
    return replace(case, batch_size=options.batch_size or case.batch_size, steps=options.steps or case.steps)


def photo_folder(options: argparse.Namespace, cases: Iterable[Case], stack: ExitStack) -> Path:
    """The folder of photos, made if none was given."""
    if options.images is not None:
        return options.images
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    number = options.photos or 4 * max(case.batch_size for case in cases)
    write_photos(folder, number, seed=options.seed)
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    from PIL import Image

    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.preset == "gpu" else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as training does, for ready views too
    world, console, load_before = World(rank=0, size=1, device=device), Console(), load()
    cases = {name: chosen_case(name, options) for name in options.cases}
    results = {}
    with ExitStack() as stack:
        folder = photo_folder(options, cases.values(), stack)
        source = open_source("folder", folder, seed=options.seed)
        sizes = list(_sizes(source, Image.open))
        for name, case in cases.items():
            if len(source) < case.batch_size:
                raise SystemExit(f"{folder} has {len(source)} images, fewer than a batch of {case.batch_size}")
            with ExitStack() as inner:
                supplies = open_supplies(case, source, world, max(map(min, sizes)), inner)
                contest = Contest(
                    case,
                    source,
                    supplies,
                    world,
                    seed=options.seed,
                    compile=options.compile,
                    folder=Path(inner.enter_context(tempfile.TemporaryDirectory())),
                )
                results[name] = measure(contest, options.rounds, lambda line: print(line, file=sys.stderr))
            console.print(table(name, case, results[name]))
        file_bytes = statistics.mean(source.path(i).stat().st_size for i in range(len(source)))
    document = {
        "images": "made: 640x480, JPEG quality 90" if options.images is None else options.images.name,
        "image_count": len(source),
        "mean_file_bytes": round(file_bytes),
        "mean_pixels": round(statistics.mean(h * w for h, w in sizes)),
        "rounds": options.rounds,
        "seed": options.seed,
        "compile": options.compile,
        "bound": BOUNDS[options.preset],
        **machine_of_preset(options.preset),
        "threads": options.threads,
        "load_before": load_before,
        "cases": {name: {**asdict(case), "feeds": results[name]} for name, case in cases.items()},
    }
    write_record(options.out, "end_to_end", arguments, document, packages=["pillow"])


def _sizes(source: ImageSource, read_header: Callable) -> Iterator[tuple[int, int]]:
    for i in range(len(source)):
        with read_header(source.path(i)) as image:
            yield image.height, image.width


if __name__ == "__main__":
    main()
