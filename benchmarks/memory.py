"""Memory and time of the contrastive losses, and of the whole step, over batch size and queue.

    python benchmarks/memory.py [--preset cpu|gpu] [--batch-sizes 32 1024] [--queues 4096 65536] [--no-step]

The reference holds all similarities to both queues and leaves the gradient to autograd: the formulas of the losses as
they are read. Ours holds a part of them at a time. Both give losses, top-1 and neighbours (k = 20) of 5 queries an
image, and the gradient by the queries; before anything is measured, they are compared on 8 images. ``step`` is a
training step with the one or the other: encoders, losses, update, queues.

Peak memory is the most by which one pass adds to what is there before it (queues, embeddings, features; of a step also
networks and views): on a CPU of a process of its own that has computed something small, or a step, before; on a GPU of
the allocator. GB are 10^9 bytes. For the time, both take turns in one process; what counts is the median over the
rounds of the ratio within a round. Processor time is that of all threads: beside other programs it is the steadier
measure on a CPU, on a GPU it is what launching costs. Printed and written to benchmarks/results/.

2048 features, up to 65,536 keys. On a CPU: 32 to 1024 images; the step is that of a ResNet-18 with 32 images, views of
96 and 48 pixels. On a GPU: up to 2048 images; the step is that of a ResNet-50 with 256 images, views of 160 and 96
pixels, bf16.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from record import add_threads, load, machine_of_preset, make_preset_parser, parse_preset, write_record
from torch import Tensor
from torch.nn import functional as F

from polyscene.ssl import step as step_module
from polyscene.ssl.moco.encoder import Encoder, create_backbone
from polyscene.ssl.moco.losses import CHUNK_BYTES, ContrastiveLosses, contrastive_losses
from polyscene.ssl.moco.model import MoCo
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.moco.queue import KeyQueue

WAYS = ("reference", "ours")
QUERIES = 5
DIM = 128
NEIGHBOURS = 20
WEIGHT = 0.4
TEMPERATURE = 0.2
BOUND_GB = 2
"""Of the losses at 1024 images and 65,536 keys."""
LEAST_ROUNDS = 2
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        batch: images B.
        queue: keys K.
        width: features C.
        arch: of a whole step; None: the losses only.
        sizes: pixels of large and small views, of a step.
    """

    batch: int
    queue: int
    width: int = 2048
    arch: str | None = None
    sizes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Setting:
    """How it is measured."""

    device: str
    threads: int
    seed: int
    precision: str
    chunk_bytes: int


PRESETS = {
    "cpu": {
        "device": "cpu",
        "batch_sizes": (32, 256, 1024),
        "queues": (4096, 65_536),
        "precision": "fp32",
        "step": Case(32, 65_536, 512, "resnet18", (96, 48)),
    },
    "gpu": {
        "device": "cuda",
        "batch_sizes": (256, 1024, 2048),
        "queues": (16_384, 65_536),
        "precision": "bf16",
        "step": Case(256, 65_536, 2048, "resnet50", (160, 96)),
    },
}


# What is compared


def reference(
    queries: Tensor,
    anchors: Tensor,
    queue: Tensor,
    temperature: float,
    *,
    features: Tensor,
    feature_queue: Tensor,
    k: int,
    written: Tensor,
) -> ContrastiveLosses:
    """Both losses from whole matrices, which both share. Arguments as of `contrastive_losses`."""
    with torch.autocast(queries.device.type, enabled=False):
        negatives = queries.float() @ queue.T / temperature
    partition = negatives.logsumexp(dim=-1)
    positives = (queries.float() * anchors.float().unsqueeze(1)).sum(dim=-1) / temperature
    instance = (torch.logaddexp(positives, partition) - positives).mean()
    with torch.no_grad():
        top1 = (positives > negatives.amax(dim=-1)).float().mean()
        with torch.autocast(queries.device.type, enabled=False):
            similarity = F.normalize(features.float(), dim=-1) @ feature_queue.T
        slot = torch.arange(len(feature_queue), device=written.device)
        values, slots = similarity.masked_fill(slot >= written, -torch.inf).topk(k, dim=-1)
        real = (values > -torch.inf).float()
    terms = partition.unsqueeze(-1) - negatives.gather(-1, slots)
    neighbour = ((terms * real).sum(dim=-1) / real.sum(dim=-1).clamp(min=1)).mean()
    return ContrastiveLosses(instance, neighbour, top1, slots)


def losses_pass(case: Case, setting: Setting) -> Callable[[str], tuple[ContrastiveLosses, Tensor]]:
    """Function that computes losses and gradient by the queries, of made-up embeddings, in the given way."""
    generator = torch.Generator().manual_seed(setting.seed)
    queue = KeyQueue(case.queue, DIM, case.width, generator=generator).to(setting.device)
    queue.written.fill_(case.queue)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(setting.device)

    queries, anchors = unit(case.batch, QUERIES, DIM), unit(case.batch, DIM)
    arguments = {
        "features": unit(case.batch, QUERIES, case.width),
        "feature_queue": queue.features,
        "k": NEIGHBOURS,
        "written": queue.written,
    }

    def run(way: str) -> tuple[ContrastiveLosses, Tensor]:
        leaf = queries.detach().requires_grad_()
        if way == "ours":
            found = contrastive_losses(
                leaf, anchors, queue.embeddings, TEMPERATURE, **arguments, chunk_bytes=setting.chunk_bytes
            )
        else:
            found = reference(leaf, anchors, queue.embeddings, TEMPERATURE, **arguments)
        (found.instance + WEIGHT * found.neighbour).backward()
        return found, leaf.grad

    return run


def step_pass(case: Case, setting: Setting) -> Callable[[str], object]:
    """Function that takes a training step on made-up views with the losses of the given way."""
    from polyscene.runtime.distributed import World

    torch.manual_seed(setting.seed)
    encoder = Encoder(create_backbone(case.arch), DIM)
    model = MoCo(encoder, KeyQueue(case.queue, DIM, encoder.feature_dim), momentum=0.995).to(
        setting.device, memory_format=torch.channels_last
    )
    model.queue.written.fill_(case.queue)
    runner = step_module.StepRunner(
        model,
        torch.optim.SGD(model.query.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4),
        step_module.LossSettings(TEMPERATURE, NEIGHBOURS, WEIGHT),
        plan_normalization("auto", 128, case.batch, 1),
        World(rank=0, size=1, device=torch.device(setting.device)),
        seed=setting.seed,
        precision=setting.precision,
    )
    views = [
        torch.randn(case.batch, count, 3, size, size, device=setting.device)
        for count, size in zip((2, QUERIES - 1), case.sizes)
    ]
    steps = iter(range(10**9))

    def run(way: str) -> None:
        losses = contrastive_losses if way == "ours" else reference
        with mock.patch.object(step_module, "contrastive_losses", losses):
            runner.step(views, step=next(steps), learning_rate=0.01)

    return run


def prepared(case: Case, setting: Setting) -> Callable[[str], object]:
    """Function that runs the case in the given way, once."""
    return losses_pass(case, setting) if case.arch is None else step_pass(case, setting)


def agreement(case: Case, setting: Setting) -> dict[str, float]:
    """How far the ways are apart on a few images: losses and gradient, relative, and share of other neighbours."""
    run = losses_pass(replace(case, batch=min(8, case.batch)), setting)
    (ours, slope), (theirs, other_slope) = run("ours"), run("reference")
    pairs = {
        "instance": (ours.instance, theirs.instance),
        "neighbour": (ours.neighbour, theirs.neighbour),
        "gradient": (slope, other_slope),
    }
    found = {name: float((a - b).detach().norm() / b.detach().norm()) for name, (a, b) in pairs.items()}
    different = ours.neighbours.sort(dim=-1).values != theirs.neighbours.sort(dim=-1).values
    return found | {"neighbours": float(different.float().mean())}


# How it is measured


def peak_memory(case: Case, way: str, setting: Setting) -> int | None:
    """Bytes that a pass adds at most; None where memory does not suffice or the system does not tell."""
    if setting.device.startswith("cuda"):
        return _cuda_peak(case, way, setting)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(_cpu_peak, case, way, setting).result()
        except (BrokenProcessPool, RuntimeError) as error:
            if isinstance(error, BrokenProcessPool) or "allocate" in str(error):
                return None
            raise


def _cpu_peak(case: Case, way: str, setting: Setting) -> int | None:
    from polyscene.downstream.multitask.analysis.inference import resident_peak

    torch.set_num_threads(setting.threads)
    run = prepared(case, setting)
    if case.arch is None:
        losses_pass(replace(case, batch=1, queue=1024), setting)(way)
    else:
        run(way)
    return resident_peak(lambda: run(way))


def _cuda_peak(case: Case, way: str, setting: Setting) -> int | None:
    try:
        run = prepared(case, setting)
        run(way)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(way)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    except torch.cuda.OutOfMemoryError:
        return None


def timings(
    case: Case, ways: list[str], setting: Setting, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Way -> time and processor time of a pass, seconds, in every round; the ways take turns.

    Rounds end when the time for a case is used up.
    """
    run = prepared(case, setting)
    warm_up = run if case.arch else losses_pass(replace(case, batch=min(8, case.batch)), setting)
    for way in ways:
        warm_up(way)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    started = time.perf_counter()
    for number in range(options.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - started > options.seconds:
            break
        for way in ways if number % 2 else reversed(ways):
            _wait(setting)
            begun, used = time.perf_counter(), time.process_time()
            run(way)
            _wait(setting)
            found[way].append((time.perf_counter() - begun, time.process_time() - used))
    return found


def _wait(setting: Setting) -> None:
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(case: Case, setting: Setting, options: argparse.Namespace) -> dict:
    """Everything about a case.

    Raises:
        SystemExit: the ways do not compute the same.
    """
    differences = agreement(case, setting)
    if not max(differences.values()) < TOLERANCE:
        raise SystemExit(f"{label(case)}: reference and ours do not compute the same: {differences}")
    peaks = {way: peak_memory(case, way, setting) for way in WAYS}
    # Where a pass does not fit into a process of its own, it does not fit into this one.
    on_gpu = setting.device.startswith("cuda")
    fitting = [way for way in WAYS if peaks[way] is not None or not (on_gpu or Path("/proc/self/clear_refs").exists())]
    found = timings(case, fitting, setting, options)
    times, used = ({way: [pair[i] for pair in pairs] for way, pairs in found.items()} for i in (0, 1))
    return {
        **asdict(case),
        "queries_an_image": QUERIES,
        "peak_bytes": peaks,
        "ms": {way: _milliseconds(statistics.median(each)) for way, each in times.items()},
        "ms_of_rounds": {way: [_milliseconds(x) for x in each] for way, each in times.items()},
        "processor_ms": {way: _milliseconds(statistics.median(each)) for way, each in used.items()},
        "ratio": ratio(times),
        "processor_ratio": ratio(used),
        "largest_difference": differences,
    }


def _milliseconds(value: float) -> float:
    return round(1e3 * value, 3)


def ratio(times: Mapping[str, list[float]]) -> dict[str, float] | None:
    """Time of the reference by ours, within rounds: median and quartiles; None if one of them was not measured."""
    if set(times) != set(WAYS):
        return None
    ratios = [theirs / ours for theirs, ours in zip(times["reference"], times["ours"], strict=True)]
    first, third = quartiles(ratios)
    return {
        name: round(x, 4) for name, x in (("median", statistics.median(ratios)), ("first", first), ("third", third))
    }


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile; of fewer than three values, the smallest and the largest."""
    if len(values) < 3:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


# What is shown


def label(case: Case) -> str:
    """For instance ``losses, 32 images, K 4096, C 2048``."""
    what = "losses" if case.arch is None else f"{case.arch} step"
    return f"{what}, {case.batch} images, K {case.queue}, C {case.width}"


def row(found: dict) -> str:
    """A case's line of the table."""

    def number(value: float | None, shape: str) -> str:
        return "-" if value is None else format(value, shape)

    case = Case(**{name: found[name] for name in Case.__dataclass_fields__})
    peaks = (None if peak is None else peak / 1e9 for peak in found["peak_bytes"].values())
    line = f"{label(case):<46}" + "".join(f"{number(peak, '.3f'):>11}" for peak in peaks)
    line += "".join(f"{number(found['ms'].get(way), '.1f'):>11}" for way in WAYS)
    for kind in ("processor_ratio", "ratio"):
        line += f"{number(found[kind] and found[kind]['median'], '.2f'):>11}"
    return line + (f"  {found['ratio']['first']:.2f}-{found['ratio']['third']:.2f}" if found["ratio"] else "")


def header() -> str:
    """What the columns are."""
    columns = "".join(
        f"{name:>11}" for name in ("GB, ref.", "GB, ours", "ms, ref.", "ms, ours", "processor", "ref./ours")
    )
    return f"{'peak memory and time of a pass':<46}{columns}  quartiles"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_preset_parser(__doc__, PRESETS)
    words.add_argument("--batch-sizes", type=int, nargs="*")
    words.add_argument("--queues", type=int, nargs="+")
    words.add_argument("--width", type=int, default=2048, help="features of the losses alone")
    words.add_argument("--no-step", action="store_true", help="the losses alone")
    words.add_argument("--rounds", type=int, default=15, help="at most")
    words.add_argument("--seconds", type=float, default=10, help="after which a case gets no further round")
    words.add_argument("--chunk-mb", type=float, default=CHUNK_BYTES / 2**20, help="of the losses alone; 2^20 bytes")
    add_threads(words)
    least = {"rounds": 1, "threads": 1, "width": 1, "chunk_mb": 2**-20}
    options = parse_preset(words, arguments, script="memory", least=least)
    preset = PRESETS[options.preset]
    options.batch_sizes = list(preset["batch_sizes"]) if options.batch_sizes is None else options.batch_sizes
    options.queues = list(options.queues or preset["queues"])
    if min(options.queues) < NEIGHBOURS:
        words.error(f"--queues {min(options.queues)}: give {NEIGHBOURS} or more, as many neighbours are searched")
    if min(options.batch_sizes, default=1) < 1:
        words.error(f"--batch-sizes {min(options.batch_sizes)}: give 1 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    preset = PRESETS[options.preset]
    setting = Setting(
        preset["device"], options.threads, options.seed, preset["precision"], int(options.chunk_mb * 2**20)
    )
    torch.set_num_threads(options.threads)
    cases = [Case(batch, queue, options.width) for queue in options.queues for batch in options.batch_sizes]
    results, load_before = [], load()
    print(header())
    for case in cases if options.no_step else [*cases, preset["step"]]:
        results.append(measure(case, setting, options))
        print(row(results[-1]), flush=True)
    document = {
        **asdict(setting),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "neighbours": NEIGHBOURS,
        "dim": DIM,
        "bound_gb": BOUND_GB,
        **machine_of_preset(options.preset),
        "load_before": load_before,
        "cases": results,
    }
    write_record(options.out, "memory", arguments, document)


if __name__ == "__main__":
    main()
