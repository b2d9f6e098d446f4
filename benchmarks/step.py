"""The training step against the same step built from lightly's parts, and against what the machine could do.

    python benchmarks/step.py [--preset cpu|gpu] [--cases r18_16 ...] [--rounds 9] [--threads 2]

All contestants get the same views, which are on the device, the same backbone (timm's) and the same first weights and
queues. ``ours`` is `ssl.step.StepRunner` as `polyscene pretrain` runs it; ``lightly`` is `lightly_moco.py`: the
published MoCo-v2 example with small crops and neighbours added in the plainest way; ``lightly, channels last`` is the
same in the memory layout that ours has. Both losses, k = 20; the queues are full. Before anything is timed, loss and
gradients of ours and lightly's are compared on a part of the batch.

In one process, in turns; the ratio is the median over the rounds of the ratios within a round, quartiles in brackets.
Processor time is that of all threads: beside other programs it is the steadier measure on a CPU; on a GPU it is what
launching costs. The parts of a step are timed in rounds of their own, in which the device is waited for after each.
The bound (`roofline.py`) is the sum over the operations of our step of the larger of arithmetic and bytes, at the rates
of a matrix product and of a copy measured in the same rounds. Printed and written to benchmarks/results/.

On a CPU: ResNet-18, views of 2 x 96 and 4 x 48 pixels, batches of 16 and 32, queues of 65,536 (the recipe) and 4,096
(lightly's example). On a GPU: ResNet-50, 2 x 160 and 4 x 96 pixels, a batch of 256, bf16, also with compiled encoders.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch
from ratios import shown, spread, turned
from record import (
    add_sizes,
    add_threads,
    check_sizes,
    choose_cases,
    load,
    machine_of_preset,
    make_preset_parser,
    parse_preset,
    write_record,
)
from rich.console import Console
from rich.table import Table
from roofline import Rates, Work, measure_rates
from torch import Tensor
from training_case import LEARNING_RATE, TrainingCase, make_model, make_optimizer

from polyscene.runtime.allocator import keep_freed_memory
from polyscene.runtime.distributed import World
from polyscene.ssl import step as step_module
from polyscene.ssl.moco.model import MultiViewEncoder
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.step import LossSettings, StepRunner

LOSSES = LossSettings()
BOUNDS = {"cpu": 1.4, "gpu": 1.8}
TOLERANCE = {"loss": 1e-4, "gradients": 1e-2}
"""Relative, in float32: rounding alone is 1e-3 of the gradients of so deep a network."""


@dataclass(frozen=True)
class Case(TrainingCase):
    """What is trained, and by whom.

    Attributes:
        contestants: who takes part; the first is ours.
        steps: in a turn.
    """

    contestants: tuple[str, ...] = ("ours", "lightly", "lightly, channels last")
    steps: int = 1


_ON_GPU = ("ours", "ours, compiled", "lightly", "lightly, channels last")
CASES = {
    "cpu": {
        "r18_16": Case("resnet18", (96, 48), 16, 65_536, "fp32"),
        "r18_32": Case("resnet18", (96, 48), 32, 65_536, "fp32"),
        "r18_16_short_queue": Case("resnet18", (96, 48), 16, 4096, "fp32"),
        "r18_32_short_queue": Case("resnet18", (96, 48), 32, 4096, "fp32"),
        "r18_16_bf16": Case("resnet18", (96, 48), 16, 65_536, "bf16"),
    },
    "gpu": {"r50_256": Case("resnet50", (160, 96), 256, 65_536, "bf16", _ON_GPU, 10)},
}


@dataclass
class Contestant:
    """A way to run the step.

    Attributes:
        step: one training step; returns the loss.
        parameters: that are trained.
        optimizer: of them.
        parts: label -> what does that part of a step, as (object, attribute).
    """

    step: Callable[[], Tensor]
    parameters: Sequence[Tensor]
    optimizer: torch.optim.Optimizer
    parts: list[tuple[str, Any, str]]


# What is compared


def make_views(case: Case, device: torch.device, seed: int, small: int = 4) -> list[Tensor]:
    """Noise in the memory layout of rendered views: two large ones and some small ones."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(case.batch_size, count, size, size, 3) for count, size in zip((2, small), case.sizes)]
    return [torch.randn(shape, generator=generator).to(device).permute(0, 1, 4, 2, 3) for shape in shapes]


def make_ours(
    case: Case, views: Sequence[Tensor], device: torch.device, seed: int, *, kind: str = "auto", compile: bool = False
) -> Contestant:
    """The project's step."""
    model = make_model(case, device, seed)
    optimizer = make_optimizer(model)
    norm = plan_normalization(kind, 128, case.batch_size, 1)
    world = World(rank=0, size=1, device=device)
    runner = StepRunner(model, optimizer, LOSSES, norm, world, seed=seed, precision=case.precision, compile=compile)
    done = iter(range(10**9))

    def step() -> Tensor:
        return runner.step(views, step=next(done), learning_rate=LEARNING_RATE).means[0]

    parts = [
        ("moving average", model, "update_key_encoder"),
        ("queries, forward", MultiViewEncoder, "forward"),
        ("keys, forward", model, "embed_keys"),
        ("losses, forward", step_module, "contrastive_losses"),
        ("enqueue", model.queue, "enqueue"),
    ]
    return Contestant(step, list(model.query.parameters()), optimizer, parts)


def make_lightly(case: Case, views: Sequence[Tensor], device: torch.device, seed: int, layout: Any) -> Contestant:
    """The step from lightly's parts, with the same weights and queues."""
    from lightly_moco import LightlyMoCo

    model = LightlyMoCo(
        make_model(case, device, seed),
        temperature=LOSSES.temperature,
        k=LOSSES.k,
        neighbour_weight=LOSSES.neighbour_weight,
        precision=case.precision,
        layout=layout,
    )
    trained = [*model.backbone.parameters(), *model.projection_head.parameters()]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    parts = [
        ("moving average", model, "move_momentum_encoder"),
        ("queries, forward", model, "embed_queries"),
        ("keys, forward", model, "embed_keys"),
        ("losses, forward", model, "losses"),
        ("enqueue", model, "write_banks"),
    ]
    return Contestant(lambda: model.step(views, optimizer), trained, optimizer, parts)


def contestants(case: Case, device: torch.device, seed: int) -> dict[str, Contestant]:
    """All of a case."""
    views = make_views(case, device, seed)
    makers = {
        "ours": lambda: make_ours(case, views, device, seed),
        "ours, compiled": lambda: make_ours(case, views, device, seed, compile=True),
        "lightly": lambda: make_lightly(case, views, device, seed, torch.contiguous_format),
        "lightly, channels last": lambda: make_lightly(case, views, device, seed, torch.channels_last),
    }
    return {name: makers[name]() for name in case.contestants}


def disagreement(case: Case, device: torch.device, seed: int) -> dict[str, float]:
    """How far lightly's loss and gradients are from ours, relative, in float32.

    With BatchNorm over the batch and one small view: ours normalises all small views together, lightly's by and by.
    """
    torch.backends.cudnn.allow_tf32 = False
    case = replace(case, batch_size=min(8, case.batch_size), queue=min(4096, case.queue), precision="fp32")
    views = make_views(case, device, seed, small=1)
    found = []
    for way in (
        make_ours(case, views, device, seed, kind="sync"),
        make_lightly(case, views, device, seed, torch.contiguous_format),
    ):
        gradients: list[Tensor] = []
        way.optimizer.step = lambda way=way, gradients=gradients: gradients.extend(p.grad for p in way.parameters)
        loss = way.step()
        found.append((loss.double(), torch.cat([g.flatten().double() for g in gradients])))
    torch.backends.cudnn.allow_tf32 = True
    (loss, gradients), (other_loss, other_gradients) = found
    return {
        "loss": float((loss - other_loss).abs() / loss),
        "gradients": float((gradients - other_gradients).norm() / gradients.norm()),
    }


# How it is measured


class Stopwatch:
    """Milliseconds by label, counted once the device has done its work."""

    def __init__(self, device: torch.device):
        self.device, self.found = device, {}

    def now(self) -> float:
        """Milliseconds; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    @contextmanager
    def around(self, label: str, owner: Any, attribute: str) -> Iterator[None]:
        """Time all calls of a function within."""
        original = getattr(owner, attribute)

        def timed(*arguments: Any, **more: Any) -> Any:
            begun = self.now()
            result = original(*arguments, **more)
            self.found[label] = self.found.get(label, 0.0) + self.now() - begun
            return result

        with mock.patch.object(owner, attribute, timed):
            yield


def time_parts(way: Contestant, device: torch.device) -> dict[str, float]:
    """Milliseconds of the parts of one step."""
    watch = Stopwatch(device)
    common = [
        ("backward", Tensor, "backward"),
        ("optimiser", way.optimizer, "step"),
        ("optimiser", way.optimizer, "zero_grad"),
    ]
    with ExitStack() as stack:
        for label, owner, attribute in [*way.parts, *common]:
            stack.enter_context(watch.around(label, owner, attribute))
        begun = watch.now()
        way.step()
        whole = watch.now() - begun
    return {**watch.found, "rest": whole - sum(watch.found.values())}


def measure(case: Case, device: torch.device, *, rounds: int, seed: int) -> dict:
    """Everything about a case.

    Raises:
        SystemExit: ours and lightly's do not compute the same.
    """
    differences = disagreement(case, device, seed)
    if any(differences[kind] > limit for kind, limit in TOLERANCE.items()):
        raise SystemExit(f"ours and lightly's do not compute the same: {differences}")
    ways = contestants(case, device, seed)
    watch = Stopwatch(device)
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    rates: list[Rates] = []
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    for way in ways.values():  # libraries choose their algorithms, compilers compile
        for _ in range(3 if device.type == "cuda" else 1):
            way.step()
    for number in range(rounds):
        for name in turned(ways, number):
            begun, used = watch.now(), time.process_time()
            for _ in range(case.steps):
                ways[name].step()
            wall[name].append((watch.now() - begun) / case.steps)
            processor[name].append(1e3 * (time.process_time() - used) / case.steps)
        for name in turned(ways, number):
            parts[name].append(time_parts(ways[name], device))
        rates.append(measure_rates(device, dtype))
    work = Work()
    with work:
        ways[case.contestants[0]].step()
    best = Rates(max(r.flops for r in rates), max(r.bytes for r in rates))
    return {
        "largest_difference": differences,
        "step_ms": {name: round(statistics.median(found), 2) for name, found in wall.items()},
        "images_per_second": {name: round(1e3 * case.batch_size / statistics.median(x), 1) for name, x in wall.items()},
        "ratio": ratios(wall),
        "processor_ms": {name: round(statistics.median(found), 2) for name, found in processor.items()},
        "processor_ratio": ratios(processor),
        "step_ms_of_rounds": {name: [round(x, 2) for x in found] for name, found in wall.items()},
        "parts_ms": {
            name: {part: round(statistics.median(each.get(part, 0.0) for each in found), 2) for part in found[0]}
            for name, found in parts.items()
        },
        "roofline": {
            "gflop_per_step": round(work.flops / 1e9, 2),
            "gbyte_per_step": round(work.bytes / 1e9, 3),
            "gflop_per_second": round(best.flops / 1e9, 1),
            "gbyte_per_second": round(best.bytes / 1e9, 1),
            "arithmetic_ms": round(1e3 * work.flops / best.flops, 2),
            "memory_ms": round(1e3 * work.bytes / best.bytes, 2),
            "bound_ms": round(1e3 * work.seconds(best), 2),
            "bound_over_step": round(1e3 * work.seconds(best) / statistics.median(wall[case.contestants[0]]), 3),
        },
    }


def ratios(milliseconds: dict[str, list[float]]) -> dict[str, dict]:
    """Of every other contestant's time to the first's, in the same round."""
    own, *others = milliseconds
    return {name: spread([b / a for a, b in zip(milliseconds[own], milliseconds[name])]) for name in others}


# What is shown


def tables(name: str, case: Case, found: dict) -> list[Table]:
    """Steps and parts, and the bound."""
    large, small = case.sizes
    title = f"{name}: {case.arch}, {case.batch_size} images of 2 x {large} + 4 x {small} pixels, "
    table = Table(title=f"{title}queue {case.queue}, {case.precision}")
    for column in ("ms", *case.contestants):
        table.add_column(column, justify="left" if column == "ms" else "right")
    table.add_row("whole step", *(f"{found['step_ms'][each]:.1f}" for each in case.contestants))
    for kind, label in (("ratio", "ours is quicker by"), ("processor_ratio", "by processor time")):
        table.add_row(label, "", *(shown(found[kind][each]) for each in case.contestants[1:]))
    table.add_section()
    for part in found["parts_ms"][case.contestants[0]]:
        table.add_row(part, *(f"{found['parts_ms'][each].get(part, 0):.1f}" for each in case.contestants))
    line = found["roofline"]
    bound = Table(title="what the machine could do")
    for column in ("", "of our step", "measured rate", "ms"):
        bound.add_column(column, justify="right" if column else "left")
    flops, moved = f"{line['gflop_per_step']:.1f} GFLOP", f"{line['gbyte_per_step']:.2f} GB"
    bound.add_row("arithmetic", flops, f"{line['gflop_per_second']:,.0f} GFLOP/s", f"{line['arithmetic_ms']:.1f}")
    bound.add_row("memory", moved, f"{line['gbyte_per_second']:,.1f} GB/s", f"{line['memory_ms']:.1f}")
    bound.add_row("bound", "", f"{line['bound_over_step']:.0%} of the step", f"{line['bound_ms']:.1f}")
    return [table, bound]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_preset_parser(__doc__, CASES)
    words.add_argument("--cases", nargs="+", choices=[case for cases in CASES.values() for case in cases])
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--batch-size", type=int)
    words.add_argument("--queue", type=int)
    add_sizes(words)
    add_threads(words)
    words.add_argument("--compile", action="store_true", help="also our step with compiled encoders")
    least = {"rounds": 1, "threads": 1, "batch_size": 4, "queue": LOSSES.k}
    options = parse_preset(words, arguments, script="step", least=least)
    if importlib.util.find_spec("lightly") is None:
        words.exit(2, "lightly, which our step is compared with, is not installed; pip install 'lightly>=1.5'\n")
    options.cases = choose_cases(words, options, CASES)
    check_sizes(words, options.sizes)
    return options


def chosen_case(name: str, options: argparse.Namespace) -> Case:
    """A case with the options' numbers in place of its own."""
    case = CASES[options.preset][name]
    if options.compile and "ours, compiled" not in case.contestants:
        case = replace(case, contestants=("ours", "ours, compiled", *case.contestants[1:]))
    return replace(
        case,
        batch_size=options.batch_size or case.batch_size,
        queue=options.queue or case.queue,
        sizes=tuple(options.sizes or case.sizes),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.preset == "gpu" else "cpu")
    # As training does; lightly's step gets it, too.
    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()
    console, load_before, results = Console(width=110), load(), {}
    for name in options.cases:
        print(f"{name} ...", file=sys.stderr)
        case = chosen_case(name, options)
        results[name] = {**asdict(case), **measure(case, device, rounds=options.rounds, seed=options.seed)}
        for table in tables(name, case, results[name]):
            console.print(table)
    document = {
        "rounds": options.rounds,
        "seed": options.seed,
        "bound": BOUNDS[options.preset],
        **machine_of_preset(options.preset),
        "threads": options.threads,
        "load_before": load_before,
        "cases": results,
    }
    write_record(options.out, "step", arguments, document, packages=["lightly"])


if __name__ == "__main__":
    main()
