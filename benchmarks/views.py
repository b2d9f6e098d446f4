"""How many images a second one processor core turns into views: the published pipeline, and this one.

    python benchmarks/views.py [--preset cpu|gpu] [--images FOLDER] [--rounds 5]

The recipe of the thesis for COCO: two crops of 160 pixels and four of 96 that overlap the anchor, colour jitter, grey,
blur and flip (``standard``), or either that or AutoAugment for each query (``mix``). `published_views` makes them as
the published code does, one after another in a data worker. Here a worker only reads, decodes and draws parameters;
pixels are rendered where the model is. The distributions are the same; so are the pixels up to rounding
(tests/ssl/views).

Three tables. What a **worker** spends on an image until the batch has left it (for the published pipeline that is all
there is): in worker processes, with files, with decoded images in memory (``data.cache=memory``) and with decoded
images in the training process (``data.cache=device``). What the **whole path** takes in one process on one core, from
the file, or from decoded images in the process, to a batch of normalised views. Where the time goes, by **stages**:
those of the whole path, and gathering a batch for its way out of a worker.

Times are processor time, which other programs disturb least; the whole path also has wall time. Contestants take turns;
a ratio is the median over the rounds of the ratio within a round, quartiles in brackets. Without --images, photo-like
files of 640x480 pixels, JPEG quality 90, about as large as COCO's, are made first. Printed and written to
benchmarks/results/.

On a GPU, besides the tables above: images a second rendered from decoded images that are on the device, by batches, and
what the mix costs over the standard augmentation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from photos import write_photos
from published_views import seed_everything
from ratios import shown, spread, turned
from record import check_images, load, machine_of_preset, make_preset_parser, parse_preset, write_record
from rich.console import Console
from rich.table import Table
from view_work import (
    AUGMENTATIONS,
    Setting,
    measure_device,
    our_batches,
    our_cached_batches,
    our_stages,
    our_worker,
    published_batches,
    published_stages,
    published_worker,
    timed,
)

from polyscene.runtime.allocator import keep_freed_memory
from polyscene.runtime.distributed import World
from polyscene.runtime.images import decode_image
from polyscene.ssl.cached_images import open_supply, plan_cache
from polyscene.ssl.loading import ImageSupply
from polyscene.ssl.sources import ImageSource, open_source

CACHES = {"none": "files", "memory": "cache memory", "device": "cache device"}
HOST_BOUND, PATH_BOUND = 10, 2


# How it is measured


def measure_host(source: ImageSource, supplies: dict[str, ImageSupply], setting: Setting) -> dict:
    """All three tables' numbers, with those of every round."""
    workers = {
        **{f"published, {a}": partial(published_worker, source, a, setting) for a in AUGMENTATIONS},
        **{f"ours, {CACHES[c]}": partial(our_worker, source, s, "mix", setting) for c, s in supplies.items()},
    }
    paths: dict[str, Iterator[None]] = {}
    for a in AUGMENTATIONS:
        paths[f"published, {a}"] = published_batches(source, a, setting)
        paths[f"ours, {a}"] = our_batches(source, a, setting)
        paths[f"ours, {a}, decoded"] = our_cached_batches(source, supplies["device"], a, setting)
    stages = {
        **{f"published, {a}": partial(published_stages, source, a, setting) for a in AUGMENTATIONS},
        **{f"ours, {a}": partial(our_stages, source, a, setting) for a in AUGMENTATIONS},
    }
    worker_rounds: dict[str, list[float]] = {name: [] for name in workers}
    path_rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    stage_rounds: dict[str, list[dict[str, float]]] = {name: [] for name in stages}
    for number in range(setting.rounds + 1):
        for name in turned(paths, number):
            path_rounds[name].append(timed(paths[name], setting))
        if number:  # the first round warms up files and memory
            for name in turned(workers, number):
                worker_rounds[name].append(workers[name]())
            for name in turned(stages, number):
                stage_rounds[name].append(stages[name]())
        print(f"round {number} of {setting.rounds}", file=sys.stderr)
    processor_rounds = {name: [used for used, _ in found[1:]] for name, found in path_rounds.items()}
    wall_rounds = {name: [wall for _, wall in found[1:]] for name, found in path_rounds.items()}
    return {
        "worker": _compared(worker_rounds, lambda name: ["published, standard", "published, mix"]),
        "whole_path": _compared(processor_rounds, lambda name: [f"published, {name.split(', ')[1]}"]),
        "whole_path_wall": _compared(wall_rounds, lambda name: [f"published, {name.split(', ')[1]}"]),
        "stages_ms": {
            name: {stage: round(1e3 * statistics.median(r[stage] for r in found), 4) for stage in found[0]}
            for name, found in stage_rounds.items()
        },
    }


def _compared(rounds: dict[str, list[float]], references: Callable[[str], list[str]]) -> dict[str, dict]:
    """Milliseconds an image and, of ours, how often they fit into those of the published pipelines."""
    found = {}
    for name, own in rounds.items():
        found[name] = {
            "ms_an_image": round(1e3 * statistics.median(own), 4),
            "images_per_second": round(1 / statistics.median(own), 1),
            "ms_of_rounds": [round(1e3 * x, 4) for x in own],
        }
        if name.startswith("ours"):
            found[name]["ratio_to"] = {
                other: spread([theirs / ours for theirs, ours in zip(rounds[other], own)]) for other in references(name)
            }
    return found


# What is shown


def tables(results: dict) -> list[Table]:
    """Workers, whole path, stages, and the device if there is one."""
    found = [
        _rate_table("a worker process", results["worker"], None),
        _rate_table("the whole path on one core", results["whole_path"], results["whole_path_wall"]),
    ]
    columns = results["stages_ms"]
    table = Table(title="ms an image, by stages")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for stage in dict.fromkeys(stage for each in columns.values() for stage in each):
        table.add_row(stage, *(f"{each[stage]:.2f}" if stage in each else "" for each in columns.values()))
    table.add_row("sum", *(f"{sum(each.values()):.2f}" for each in columns.values()))
    found.append(table)
    if "device" in results:
        device = results["device"]
        table = Table(title=f"rendering on the GPU, batches of {device['batch_size']}")
        for column in ("", "images/s", "ms a batch", "host, ms a batch"):
            table.add_column(column, justify="right" if column else "left")
        for a in AUGMENTATIONS:
            values = (device[key][a] for key in ("images_per_second", "ms_a_batch", "launch_ms_a_batch"))
            table.add_row(a, *(f"{value:,.1f}" for value in values))
        table.add_row("mix / standard", "", shown(device["mix_over_standard"]), "")
        found.append(table)
    return found


def _rate_table(title: str, found: dict[str, dict], wall: dict[str, dict] | None) -> Table:
    table = Table(title=f"{title}: processor time of an image")
    references = list(dict.fromkeys(other for each in found.values() for other in each.get("ratio_to", {})))
    columns = ["", "ms", "images/s", *(f"{other} / this" for other in references)]
    for column in [*columns, "wall time"] if wall else columns:
        table.add_column(column, justify="right" if column else "left")
    for name, each in found.items():
        ratios = each.get("ratio_to", {})
        cells = [shown(ratios[other]) if other in ratios else "" for other in references]
        if wall:
            cells.append(" ".join(f"{x['median']:.2f}x" for x in wall[name].get("ratio_to", {}).values()))
        table.add_row(name, f"{each['ms_an_image']:.3f}", f"{each['images_per_second']:,.0f}", *cells)
    return table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_preset_parser(__doc__)
    words.add_argument("--images", type=Path, help="folder of photos; without it some are made")
    words.add_argument("--batch-size", type=int, default=32, help="on the host")
    words.add_argument("--device-batch-size", type=int, default=256)
    words.add_argument("--batches", type=int, default=3, help="of each contestant in a round")
    words.add_argument("--rounds", type=int, default=5)
    least = dict.fromkeys(("batch_size", "device_batch_size", "batches", "rounds"), 1)
    options = parse_preset(words, arguments, script="views", least=least)
    check_images(words, options.images)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does on a CPU; the published pipeline gets it, too
    seed_everything(options.seed)
    console, load_before = Console(width=110), load()
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with ExitStack() as stack:
        folder = options.images
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            number = options.batch_size * 2 if options.preset == "cpu" else options.device_batch_size
            write_photos(folder, number, seed=options.seed)
        source = open_source("folder", folder, seed=options.seed)
        if len(source) < options.batch_size:
            raise SystemExit(f"{folder} has {len(source)} images, fewer than a batch of {options.batch_size}")
        sizes = [decode_image(source.path(i).read_bytes(), source.name(i)).shape[1:] for i in range(len(source))]
        setting = Setting(
            options.batch_size, options.batches, options.rounds, options.seed, max(min(size) for size in sizes)
        )
        supplies = {}
        for cache in CACHES:
            plan = plan_cache(cache, source, side=setting.cache_side, cache_dir=None, workers=0, world=world)
            supplies[cache] = stack.enter_context(
                open_supply(plan, world, say=lambda line: None, console=Console(quiet=True))
            )
        results = measure_host(source, supplies, setting)
        if options.preset == "gpu":
            device_batch = min(options.device_batch_size, len(source))
            results["device"] = measure_device(source, supplies["memory"], device_batch, setting)
        files = [source.path(i).stat().st_size for i in range(len(source))]
    for table in tables(results):
        console.print(table)
    document = {
        **asdict(setting),
        "images": "made: 640x480, JPEG quality 90" if options.images is None else options.images.name,
        "image_count": len(files),
        "mean_file_bytes": round(statistics.mean(files)),
        "mean_pixels": round(statistics.mean(h * w for h, w in sizes)),
        "bounds": {"worker": HOST_BOUND, "whole_path": PATH_BOUND},
        **machine_of_preset(options.preset),
        "threads": 1,
        "load_before": load_before,
        **results,
    }
    write_record(options.out, "views", arguments, document, packages=["pillow"])


if __name__ == "__main__":
    main()
