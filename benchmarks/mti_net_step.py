"""The training step of MTI-Net against a straightforward one: same parameters, same results, less time.

    python benchmarks/mti_net_step.py [--cases hrnet18 ...] [--size 480 640] [--batch-size 8] [--device cuda]

The reference, `mti_net_reference.py`, is section 5.2 of the thesis word by word. It runs over the project's own
modules, so that parameters, backbone and optimiser are the same. A step is forward pass, the losses of all outputs
(resized to the labels), backward pass and Adam.

In one process, in alternation, from equal states: ours, the reference in the same memory layout (channels last), and
the reference in torch's default layout. What counts is the median over the rounds, and the ratio of ours to the faster
reference. Processor time is that of all threads: beside other programs it is the steadier measure on a CPU, on a GPU it
is what launching costs. The parts of a step are timed in rounds of their own, cut apart at the maps of the backbone and
at the outputs. ``kept`` is the memory that a forward pass and its losses keep for the backward pass. Before anything is
timed, losses, gradients and BatchNorm statistics of all are compared in double precision, on a part of the batch.
Printed and written to benchmarks/results/.

Without --size: 192x256, 4 images, on a CPU; 480x640, 8 images, on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mti_net_reference import reference_losses, reference_outputs
from ratios import turned
from record import check_least, load, machine, make_parser, write_record
from torch import Tensor
from torch.nn import functional as F

from polyscene.downstream.multitask.models.base import Outputs
from polyscene.downstream.multitask.mti_net.backbones import random_backbone
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions, build_multi_scale_model
from polyscene.downstream.multitask.mti_net.mti_net import MTINet
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import task_losses, weighted_sum
from polyscene.downstream.multitask.tasks import Target, TaskSpec, load_task
from polyscene.downstream.multitask.tasks import segmentation as segmentation_task

CASES = {
    "hrnet18": ("hrnet_w18_small_v2", False),
    "hrnet18_aux": ("hrnet_w18_small_v2", True),
    "r18fpn": ("resnet18", False),
}
"""Name -> backbone, and whether there are the auxiliary tasks normals and edges."""
CLASSES = 40
BOUND = 1.2
PRECISIONS = ("fp32", "bf16")
TOLERANCE = 1e-6
"""Of losses, gradients and statistics in double precision, relative; the outputs are float32."""


@dataclass
class Contestant:
    """A way to run the step.

    Attributes:
        model: its own copy.
        optimizer: of its parameters.
        decode: model, maps of the backbone, size of the outputs -> outputs.
        losses: outputs, targets, specs -> the scalar that is minimised.
        layout: memory format of model and images.
    """

    model: MTINet
    optimizer: torch.optim.Optimizer
    decode: Callable[[MTINet, Sequence[Tensor], tuple[int, int]], Outputs]
    losses: Callable[[Outputs, Mapping[str, Target], Mapping[str, TaskSpec]], Tensor]
    layout: torch.memory_format


@dataclass
class Data:
    """One batch.

    Attributes:
        images: (N, 3, H, W) float32, normalised.
        targets: task -> batched target.
        specs: task -> what it is.
        precision: ``fp32`` or ``bf16``.
    """

    images: Tensor
    targets: dict[str, Target]
    specs: dict[str, TaskSpec]
    precision: str = "fp32"


# What is compared


def our_outputs(model: MTINet, maps: Sequence[Tensor], size: tuple[int, int]) -> Outputs:
    """The project's decoder."""
    distilled, deep = model.interact(maps, model.tasks)
    return Outputs({task: model.heads(distilled[task], task, size) for task in model.tasks}, deep)


def our_losses(outputs: Outputs, targets: Mapping[str, Target], specs: Mapping[str, TaskSpec]) -> Tensor:
    """The project's losses, all with weight 1."""
    return weighted_sum(task_losses(outputs, targets, specs), dict.fromkeys(specs, 1.0))


CONTESTANTS = {
    "ours": (our_outputs, our_losses, torch.channels_last),
    "reference": (reference_outputs, reference_losses, torch.channels_last),
    "reference, default layout": (reference_outputs, reference_losses, torch.contiguous_format),
}


def contestants(case: str, options: argparse.Namespace) -> dict[str, Contestant]:
    """All ways, from the same initial values."""
    arch, auxiliary = CASES[case]
    weights = random_backbone(arch, options.seed)
    for key, value in weights.state.items():
        # timm starts the last norm of every residual block at 0, which would stop the gradients that are compared.
        if key.endswith("bn2.weight"):
            value.fill_(1)
    model = build_multi_scale_model(
        MultiScaleOptions("mti_net"),
        weights,
        {"segmentation": CLASSES, "depth": 1},
        {"normals": 3, "edges": 1} if auxiliary else None,
        options.seed,
    )
    found = {}
    for name, (decode, losses, layout) in CONTESTANTS.items():
        own = copy.deepcopy(model).to(options.device, memory_format=layout).train()
        found[name] = Contestant(own, make_optimizer(own, "adam", learning_rate=1e-4), decode, losses, layout)
    return found


def make_data(case: str, options: argparse.Namespace) -> Data:
    """Random images and labels, a tenth of the pixels without."""
    specs = {"segmentation": segmentation_task.task(CLASSES), "depth": load_task("depth")}
    if CASES[case][1]:
        specs |= {"normals": load_task("normals"), "edges": load_task("edges")}
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, *options.size)
    valid = torch.rand(shape, generator=generator) > 0.1

    def noise(channels: int) -> Tensor:
        return torch.randn(shape[0], channels, *shape[1:], generator=generator)

    values = {
        "segmentation": torch.randint(0, CLASSES, shape, generator=generator),
        "depth": noise(1).abs() + 1,
        "normals": F.normalize(noise(3), dim=1),
        "edges": (noise(1) > 1.3).float(),
    }
    targets = {name: Target(values[name].to(options.device), valid.to(options.device)) for name in specs}
    return Data(noise(3).to(options.device), targets, specs, options.precision)


# How it is measured


def forward(way: Contestant, data: Data) -> Tensor:
    """Images to the scalar that is minimised."""
    with _precision(data):
        outputs = way.decode(way.model, way.model.encoder(_images(way, data)), _size(data))
    return way.losses(outputs, data.targets, data.specs)


def step(way: Contestant, data: Data) -> None:
    """A whole training step."""
    forward(way, data).backward()
    way.optimizer.step()
    way.optimizer.zero_grad(set_to_none=True)


def step_in_parts(way: Contestant, data: Data) -> dict[str, float]:
    """The same step with the graph cut at the backbone's maps and at the outputs: part -> milliseconds."""
    clock, found = _Clock(data.images.device), {}
    with _precision(data):
        maps = way.model.encoder(_images(way, data))
        found["backbone, forward"] = clock.lap()
        leaves = [x.detach().requires_grad_() for x in maps]
        outputs = way.decode(way.model, leaves, _size(data))
        found["decoder, forward"] = clock.lap()
    ends = _cut(outputs)
    loss = way.losses(ends, data.targets, data.specs)
    found["losses, forward"] = clock.lap()
    loss.backward()
    found["losses, backward"] = clock.lap()
    torch.autograd.backward(_flat(outputs), [x.grad for x in _flat(ends)])
    found["decoder, backward"] = clock.lap()
    torch.autograd.backward(maps, [x.grad for x in leaves])
    found["backbone, backward"] = clock.lap()
    way.optimizer.step()
    way.optimizer.zero_grad(set_to_none=True)
    found["update"] = clock.lap()
    return found


class _Clock:
    """Milliseconds between calls of `lap`, once the device has done its work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.lap()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        passed, self.last = now - getattr(self, "last", now), now
        return 1e3 * passed


def agreement(ways: Mapping[str, Contestant], data: Data) -> dict[str, dict[str, float]]:
    """How far every other way is from ours, relative: the loss, all gradients, all BatchNorm statistics.

    In double precision: in single precision, rounding alone is 1e-3 of the gradients of so deep a network. The
    contestants stay as they are.
    """
    height, width = (min(64, side) for side in _size(data))
    targets = {
        name: Target(values[:2, ..., :height, :width], valid[:2, :height, :width])
        for name, (values, valid) in data.targets.items()
    }
    data = Data(data.images[:2, :, :height, :width].double(), targets, data.specs)
    seen = {}
    for name, original in ways.items():
        way = replace(original, model=copy.deepcopy(original.model).double())
        loss = forward(way, data)
        loss.backward()
        gradients = [parameter.grad for parameter in way.model.parameters()]
        missing = [key for key, parameter in way.model.named_parameters() if parameter.grad is None]
        if missing:
            raise SystemExit(f"{name}: no gradient reaches {', '.join(missing[:5])}")
        statistics_ = [x for key, x in way.model.named_buffers() if key.endswith(("running_mean", "running_var"))]
        seen[name] = [torch.cat([x.detach().flatten().double() for x in xs]) for xs in ([loss], gradients, statistics_)]
    ours = seen["ours"]
    return {
        name: {
            kind: float((a - b).norm() / b.norm())
            for kind, a, b in zip(("loss", "gradients", "batch_norm_statistics"), ours, other)
        }
        for name, other in seen.items()
        if name != "ours"
    }


def kept_for_backward(way: Contestant, data: Data) -> float:
    """Memory, MB (2^20 bytes), that autograd keeps between the passes, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in way.model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward(way, data)
    return sum(sizes.values()) / 2**20


def _precision(data: Data) -> torch.autocast:
    return torch.autocast(data.images.device.type, torch.bfloat16, enabled=data.precision == "bf16")


def _images(way: Contestant, data: Data) -> Tensor:
    return data.images.contiguous(memory_format=way.layout)


def _size(data: Data) -> tuple[int, int]:
    return (data.images.shape[-2], data.images.shape[-1])


def _cut(outputs: Outputs) -> Outputs:
    levels = [{k: x.detach().requires_grad_() for k, x in level.items()} for level in (outputs.final, *outputs.deep)]
    return Outputs(levels[0], tuple(levels[1:]))


def _flat(outputs: Outputs) -> list[Tensor]:
    return [x for level in (outputs.final, *outputs.deep) for x in level.values()]


def measure(case: str, options: argparse.Namespace) -> dict:
    """Everything about one case.

    Raises:
        SystemExit: the ways do not compute the same.
    """
    ways, data = contestants(case, options), make_data(case, options)
    differences = agreement(ways, data)
    kept = {name: round(kept_for_backward(way, data), 1) for name, way in ways.items()}
    for name, kinds in differences.items():
        if not max(kinds.values()) < TOLERANCE:
            raise SystemExit(f"{case}: {name} and ours do not compute the same: {kinds}")
    steps: dict[str, list[float]] = {name: [] for name in ways}
    processor_time: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        names = turned(ways, number)
        for name in names:
            clock, used = _Clock(data.images.device), time.process_time()
            step(ways[name], data)
            steps[name].append(clock.lap())
            processor_time[name].append(1e3 * (time.process_time() - used))
        for name in names:
            parts[name].append(step_in_parts(ways[name], data))
    return {
        "case": case,
        "arch": CASES[case][0],
        "tasks": list(data.specs),
        "step_ms": _medians(steps),
        "step_ms_of_rounds": {name: [round(x, 1) for x in found[1:]] for name, found in steps.items()},
        "ratio": ratio(_medians(steps)),
        "processor_ms": _medians(processor_time),
        "processor_ratio": ratio(_medians(processor_time)),
        "parts_ms": {
            name: {part: _median([each[part] for each in found]) for part in found[0]} for name, found in parts.items()
        },
        "kept_for_backward_mb": kept,
        "largest_difference": differences,
    }


def ratio(milliseconds: Mapping[str, float]) -> float:
    """The faster reference over ours."""
    return round(min(value for name, value in milliseconds.items() if name != "ours") / milliseconds["ours"], 3)


def _medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: _median(values) for name, values in found.items()}


def _median(values: Sequence[float]) -> float:
    """The first round warms up."""
    return round(statistics.median(values[1:]), 2)


# What is shown


def tables(result: dict) -> list:
    """The step and its parts."""
    from rich.table import Table

    title = f"{result['case']} ({result['arch']}; {', '.join(result['tasks'])}): {result['ratio']:.2f}x"
    table = Table(title=title)
    for column in ("ms", *result["step_ms"], "ratio"):
        table.add_column(column, justify="left" if column == "ms" else "right")

    def row(name: str, values: Mapping[str, float]) -> None:
        table.add_row(name, *(f"{value:.1f}" for value in values.values()), f"{ratio(values):.2f}")

    row("whole step", result["step_ms"])
    row("processor time", result["processor_ms"])
    for part in result["parts_ms"]["ours"]:
        row(part, {name: found[part] for name, found in result["parts_ms"].items()})
    row("kept for the backward pass, MB", result["kept_for_backward_mb"])
    return [table]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked.

    Raises:
        SystemExit: some that cannot be.
    """
    words = make_parser(__doc__)
    words.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    words.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    words.add_argument("--batch-size", type=int)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--threads", type=int, default=1, help="on a CPU")
    words.add_argument("--precision", choices=PRECISIONS, default="fp32")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--device", default="cpu")
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mti_net_step.json")
    options = words.parse_args(arguments)
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        words.error(f"--device {options.device}: cpu, cuda or cuda:N")
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        words.error(f"--device {options.device}: torch {torch.__version__} finds no GPU; use --device cpu")
    options.size = tuple(options.size or ((480, 640) if on_gpu else (192, 256)))
    options.batch_size = (8 if on_gpu else 4) if options.batch_size is None else options.batch_size
    check_least(words, options, {"batch_size": 2, "rounds": 1, "threads": 1})
    if min(options.size) < 64:
        words.error(f"--size {options.size[0]} {options.size[1]}: give 64 or more, the coarsest maps are 1/32")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    from rich.console import Console

    options = parse(arguments)
    torch.set_num_threads(options.threads)
    console, results, load_before = Console(), [], load()
    for case in options.cases:
        print(f"{case} ...", file=sys.stderr)
        results.append(measure(case, options))
        for table in tables(results[-1]):
            console.print(table)
    on_gpu = options.device.startswith("cuda")
    document = {
        "size": list(options.size),
        "batch_size": options.batch_size,
        "classes": CLASSES,
        "precision": options.precision,
        "rounds": options.rounds,
        "seed": options.seed,
        "threads": options.threads,
        "device": torch.cuda.get_device_name(options.device) if on_gpu else "cpu",
        **machine(),
        "load_before": load_before,
        "bound": BOUND,
        "cases": results,
    }
    write_record(options.out, "mti_net_step", arguments, document)


if __name__ == "__main__":
    main()
