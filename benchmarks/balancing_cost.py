"""What task balancing costs: the training step with every strategy against that with fixed weights.

    python benchmarks/balancing_cost.py [--arch resnet18] [--size 96 128] [--batch-size 8] [--rounds 15] [--device cuda]

Four tasks (segmentation of 40 classes, depth, normals, edges) on one ResNet with a feature pyramid, the network of the
thesis' baseline. A step is forward pass, losses, weights, backward pass and Adam, on made-up images that are on the
device. GradNorm and MGDA take gradients of the last shared layers; with ``(all layers)`` of all shared parameters, as
MGDA is defined. In one process, in alternation; the ratio to fixed weights is the median over the rounds of ratios
within a round. Printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F

from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.downstream.multitask.data.transforms import Batch
from polyscene.downstream.multitask.mti_net.backbones import random_backbone
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions, build_multi_scale_model
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import DenseStep
from polyscene.downstream.multitask.tasks import Target, TaskSpec, load_task
from polyscene.downstream.multitask.tasks import segmentation as segmentation_task
from polyscene.runtime.distributed import World
from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run import environment, processor

CLASSES = 40
STRATEGIES = {
    "fixed": ("fixed", "last"),
    "uniform": ("uniform", "last"),
    "uncertainty": ("uncertainty", "last"),
    "DWA": ("dwa", "last"),
    "DTP": ("dtp", "last"),
    "similar losses": ("similar_losses", "last"),
    "GradNorm": ("gradnorm", "last"),
    "MGDA": ("mgda", "last"),
    "GradNorm (all layers)": ("gradnorm", "all"),
    "MGDA (all layers)": ("mgda", "all"),
}
"""Row -> strategy, and the layers whose gradients it takes."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--arch", default="resnet18", help="timm name of a ResNet or HRNet")
    words.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    words.add_argument("--batch-size", type=int, default=8)
    words.add_argument("--pyramid-width", type=int, default=64)
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--device", default="cpu")
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "balancing_cost.json")
    options = words.parse_args()
    if options.rounds < 1 or options.batch_size < 2:
        raise SystemExit("--rounds must be at least 1 and --batch-size at least 2")
    torch.set_num_threads(options.threads)
    results = measure(options)
    print_table(results)
    document = {
        "date": date.today().isoformat(),
        **{key: value for key, value in vars(options).items() if key != "out"},
        "processor": processor(),
        "gpu": torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else None,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "strategies": results,
        "environment": environment(),
    }
    make_folder(options.out.parent)
    write_text(options.out, json.dumps(document, indent=2) + "\n")
    print(f"written: {options.out}")


def measure(options: argparse.Namespace) -> dict[str, dict[str, float | list[float]]]:
    """Strategy -> median seconds of a step, median ratio to fixed weights, and the weights of the last step."""
    steps = {name: make_step(*strategy, options) for name, strategy in STRATEGIES.items()}
    batch = make_batch(options).to(torch.device(options.device))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    weights: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):  # the first is for warming up
        order = list(steps)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            started = time.perf_counter()
            found = steps[name].step(batch, step=number, learning_rate=1e-4)
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
            weights[name] = [float(weight) for weight in found.weights.values()]
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    ratios = {name: [own / fixed for own, fixed in zip(each, seconds["fixed"])] for name, each in seconds.items()}
    return {
        name: {
            "seconds": statistics.median(each),
            "ratio": statistics.median(ratios[name]),
            "ratio_of_rounds": [round(ratio, 4) for ratio in ratios[name]],
            "weights": weights[name],
        }
        for name, each in seconds.items()
    }


def tasks() -> dict[str, TaskSpec]:
    """Task -> what it is."""
    classes = segmentation_task.task(CLASSES, tuple(f"class {i}" for i in range(CLASSES)))
    return {classes.name: classes} | {name: load_task(name) for name in ("depth", "normals", "edges")}


def make_step(strategy: str, layers: str, options: argparse.Namespace) -> DenseStep:
    """A step with a network of its own; all start from the same values."""
    device, specs = torch.device(options.device), tasks()
    channels = {name: spec.channels for name, spec in specs.items()}
    shape = MultiScaleOptions("multi_task", pyramid_width=options.pyramid_width)
    model = build_multi_scale_model(shape, random_backbone(options.arch, options.seed), channels, seed=options.seed)
    model.to(device, memory_format=torch.channels_last)
    return DenseStep(
        model,
        make_optimizer(model, "adam", learning_rate=1e-4),
        specs,
        make_balancer(strategy, tuple(specs), mgda_total=len(specs)).to(device),
        World(rank=0, size=1, device=device),
        shared_layers=layers,
        precision="bf16" if device.type == "cuda" else "fp32",
    )


def make_batch(options: argparse.Namespace) -> Batch:
    """Images and labels of random values."""
    generator = torch.Generator().manual_seed(options.seed)
    count, size = options.batch_size, tuple(options.size)
    valid = torch.rand(count, *size, generator=generator) > 0.1

    def noise(width: int) -> torch.Tensor:
        return torch.randn(count, width, *size, generator=generator)

    values = {
        "segmentation": torch.randint(0, CLASSES, (count, *size), generator=generator),
        "depth": noise(1).abs() + 0.5,
        "normals": F.normalize(noise(3), dim=1),
        "edges": (noise(1) > 1.5).float(),
    }
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    return Batch([str(i) for i in range(count)], images, {name: Target(v, valid) for name, v in values.items()})


def print_table(results: dict[str, dict[str, float | list[float]]]) -> None:
    """Strategy, milliseconds a step, ratio to fixed weights."""
    print(f"{'strategy':<24}{'ms a step':>12}{'to fixed':>10}")
    for name, found in results.items():
        print(f"{name:<24}{1000 * found['seconds']:>12.0f}{found['ratio']:>9.2f}x")


if __name__ == "__main__":
    main()
