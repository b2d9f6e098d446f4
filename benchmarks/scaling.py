"""The training step in several processes: weak scaling, and what communication costs.

    python benchmarks/scaling.py [--preset cpu|gpu] [--processes 2 4] [--rounds 5]

Every process has the same number of images a step, whatever the number of processes. For each number, torchrun starts
the processes once, and three ways of working take turns in them:

- ``one alone``: the first process trains by itself, the others wait;
- ``side by side``: all train by themselves, without a word to each other;
- ``together``: all train one network as `polyscene pretrain` does: averaged gradients, keys shuffled over the processes
  for BatchNorm and gathered into every queue.

Efficiency is the images a second of all together over those of as many alone; ``by sharing the machine`` is what is
left of it side by side, where memory, caches and clocks are shared; the communication share is the part of a step
together that side by side does not take: messages, and waiting for the slowest. Medians over the rounds of ratios in a
round, quartiles in brackets. Views are ready on the device. Printed and written to benchmarks/results/.

On a CPU: ResNet-18, 16 images of 2 x 96 and 4 x 48 pixels and one thread a process, fp32, gloo. On GPUs: ResNet-50, 256
images of 2 x 160 and 4 x 96 pixels a GPU, bf16, nccl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from ratios import shown, spread, turned
from record import add_sizes, check_sizes, load, machine_of_preset, make_preset_parser, parse_preset, write_record
from rich.console import Console
from rich.table import Table
from training_case import LEARNING_RATE, TrainingCase, make_model, make_optimizer

from polyscene.runtime.allocator import keep_freed_memory
from polyscene.runtime.distributed import World, join_world
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.step import LossSettings, StepRunner

WAYS = ("one alone", "side by side", "together")


@dataclass(frozen=True)
class Case(TrainingCase):
    """What is trained by each process.

    Attributes:
        steps: in a turn.
    """

    steps: int


CASES = {
    "cpu": Case("resnet18", (96, 48), 16, 4096, "fp32", 3),
    "gpu": Case("resnet50", (160, 96), 256, 65_536, "bf16", 20),
}


# In every process


def make_step(case: Case, world: World, seed: int) -> Callable[[], None]:
    """A training step of this process in a world."""
    model = make_model(case, world.device, seed)
    optimizer = make_optimizer(model)
    norm = plan_normalization("shuffle", case.batch_size // 2, case.batch_size, world.size)
    runner = StepRunner(model, optimizer, LossSettings(), norm, world, seed=seed, precision=case.precision)
    generator = torch.Generator().manual_seed(seed + world.rank)
    shapes = [(case.batch_size, count, size, size, 3) for count, size in zip((2, 4), case.sizes)]
    views = [torch.randn(s, generator=generator).to(world.device).permute(0, 1, 4, 2, 3) for s in shapes]
    done = iter(range(10**9))
    return lambda: runner.step(views, step=next(done), learning_rate=LEARNING_RATE) and None


def time_turn(way: str, steps: dict[str, Callable[[], None]], count: int, world: World) -> float:
    """Seconds a step, from the moment in which all are ready to that in which all are done."""
    world.barrier()
    begun = time.perf_counter()
    if way != "one alone" or world.is_main:
        for _ in range(count):
            steps[way]()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
    world.barrier()
    return (time.perf_counter() - begun) / count


def work(case: Case, rounds: int, seed: int, device: str, out: Path) -> None:
    """A process' part; the first writes the seconds of every round."""
    torch.set_num_threads(1)
    with join_world(device) as world:
        if world.device.type == "cpu":
            keep_freed_memory()
        alone = make_step(case, World(rank=0, size=1, device=world.device), seed)
        steps = {"one alone": alone, "side by side": alone, "together": make_step(case, world, seed)}
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            for way in turned(WAYS, number):
                seconds = time_turn(way, steps, case.steps, world)
                if number:  # the first round warms up
                    found[way].append(seconds)
        if world.is_main:
            out.write_text(json.dumps(found))


# In the process that starts the others


def measure(case: Case, processes: int, options: argparse.Namespace) -> dict:
    """Start the processes; rates and shares.

    Raises:
        SystemExit: they failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words = [str(Path(__file__).resolve()), "--worker", str(out), *_words(case, options)]
        done = subprocess.run([*launcher, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{processes} processes failed, for the reason above")
        return summary(json.loads(out.read_text()), case, processes)


def summary(seconds: dict[str, list[float]], case: Case, processes: int) -> dict:
    """From seconds a step of every round."""
    alone, side, together = (seconds[way] for way in WAYS)
    counts = dict(zip(WAYS, (1, processes, processes)))
    return {
        "processes": processes,
        "images_per_second": {
            way: round(counts[way] * case.batch_size / statistics.median(seconds[way]), 2) for way in WAYS
        },
        "efficiency": spread([a / t for a, t in zip(alone, together)]),
        "by_sharing_the_machine": spread([a / s for a, s in zip(alone, side)]),
        "communication_share": spread([1 - s / t for s, t in zip(side, together)]),
        "step_ms_of_rounds": {way: [round(1e3 * x, 2) for x in found] for way, found in seconds.items()},
    }


def table(case: Case, results: list[dict]) -> Table:
    """A row for each number of processes."""
    large, small = case.sizes
    title = f"{case.arch}, {case.batch_size} images of 2 x {large} + 4 x {small} pixels a process, {case.precision}"
    table = Table(title=title)
    columns = ("processes", *(f"{way}, images/s" for way in WAYS), "efficiency", "by sharing the machine")
    for column in (*columns, "communication share"):
        table.add_column(column, justify="right")
    for result in results:
        rates = (f"{rate:,.1f}" for rate in result["images_per_second"].values())
        shares = (result[key] for key in ("efficiency", "by_sharing_the_machine", "communication_share"))
        table.add_row(str(result["processes"]), *rates, *(shown(share, unit="") for share in shares))
    return table


def _words(case: Case, options: argparse.Namespace) -> list[str]:
    """The options that a process needs."""
    pairs = {"preset": options.preset, "rounds": options.rounds, "seed": options.seed, "batch-size": case.batch_size}
    pairs |= {"steps": case.steps, "queue": case.queue}
    return [word for name, value in pairs.items() for word in (f"--{name}", str(value))] + [
        "--sizes",
        *map(str, case.sizes),
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_preset_parser(__doc__, CASES)
    words.add_argument("--processes", type=int, nargs="+", help="2 up to as many as there are cores or GPUs")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--steps", type=int, help="in a turn")
    words.add_argument("--batch-size", type=int, help="of a process")
    words.add_argument("--queue", type=int)
    add_sizes(words)
    words.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parse_preset(
        words, arguments, script="scaling", least={"rounds": 1, "steps": 1, "batch_size": 4, "queue": 20}
    )
    places = torch.cuda.device_count() if options.preset == "gpu" else os.cpu_count() or 1
    options.processes = options.processes or [n for n in (2, 4, 8) if n <= places] or [2]
    if max(options.processes) > places:
        kind = "GPUs" if options.preset == "gpu" else "cores"
        words.exit(2, f"--processes {max(options.processes)}: there are {places} {kind}\n")
    if min(options.processes) < 2:
        words.error(f"--processes {min(options.processes)}: give 2 or more; one alone is always measured")
    check_sizes(words, options.sizes)
    return options


def chosen_case(options: argparse.Namespace) -> Case:
    """The preset's case with the options' numbers in place of its own."""
    case = CASES[options.preset]
    return replace(
        case,
        sizes=tuple(options.sizes or case.sizes),
        **{name: getattr(options, name) or getattr(case, name) for name in ("batch_size", "queue", "steps")},
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    case, device = chosen_case(options), "cuda" if options.preset == "gpu" else "cpu"
    if options.worker:
        work(case, options.rounds, options.seed, device, options.worker)
        return
    load_before, results = load(), []
    for processes in options.processes:
        print(f"{processes} processes ...", file=sys.stderr)
        results.append(measure(case, processes, options))
    Console(width=130).print(table(case, results))
    document = {
        "rounds": options.rounds,
        "seed": options.seed,
        **machine_of_preset(options.preset),
        "threads_a_process": 1,
        "load_before": load_before,
        "case": asdict(case),
        "results": results,
    }
    write_record(options.out, "scaling", arguments, document)


if __name__ == "__main__":
    main()
