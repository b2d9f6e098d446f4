"""Response Initialization: what measuring the responses costs, and that the network it makes is the pretrained one.

    python benchmarks/response_init.py [--weights RUN_OR_FILE ...] [--photos FOLDER] [--images 64] [--rounds 5]

For every backbone, on one thread:

* seconds of a plain forward pass over the images and of the response moments of the same images, in alternation, with
  the modulators of `spatial` and of `all` convolutions; the ratio is the median over the rounds;
* largest resident memory of a process that streams 1x and 8x as many images;
* the largest difference between the features of the RCM network and of the pretrained one, relative to the largest
  feature, for every ablation, on images that were not measured; and the error at rank 24/32, with and without the
  correction of the mean.

Images are in memory, so that decoding does not hide the cost. Without photos they are smooth random pictures; without
weights, the backbones are ResNets of random filters whose BatchNorms have been through a forward pass. Printed and
written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor

    from polyscene.downstream.multitask.rcm.moments import Moments
    from polyscene.runtime.weights import BackboneWeights

MODES = ("spatial", "all")
ABLATIONS = {"RC": (False, False), "RC+NFF": (False, True), "RC+RI": (True, False), "RCM": (True, True)}
RANK = 24 / 32
BOUND = 2.0


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--weights", nargs="*", default=[], help="pretrained runs or files")
    words.add_argument("--arch", nargs="*", default=["resnet18", "resnet50"], help="backbones without weights")
    words.add_argument("--photos", help="folder of photos; without: smooth random pictures")
    words.add_argument("--images", type=int, default=64)
    words.add_argument("--batch-size", type=int, default=16)
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--device", default="cpu")
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "response_init.json")
    words.add_argument("--stream", help=argparse.SUPPRESS)  # what a process that only streams is asked for
    options = words.parse_args()
    # Read when the libraries are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if options.stream:
        print(streamed_memory(options, options.stream))
        return
    from polyscene.runtime.files import write_text
    from polyscene.runtime.run import environment, processor
    from polyscene.runtime.weights import read_weights

    subjects = [read_weights(path) for path in options.weights]
    measured = {weights.arch for weights in subjects}
    subjects += [random_weights(arch, options) for arch in options.arch if arch not in measured]
    results = [measure(weights, options) for weights in sorted(subjects, key=lambda weights: weights.arch)]
    print_tables(results)
    document = {
        "date": date.today().isoformat(),
        "images": options.images,
        "pictures": "photos" if options.photos else "smooth random pictures",
        "batch_size": options.batch_size,
        "size": options.size,
        "rounds": options.rounds,
        "seed": options.seed,
        "threads": 1,
        "device": device_name(options.device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "bound": BOUND,
        "backbones": results,
        "environment": environment(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(document, indent=2) + "\n")
    print(f"written: {options.out}")


def measure(weights: BackboneWeights, options: argparse.Namespace) -> dict:
    """Everything about one backbone."""
    from polyscene.runtime.weights import weights_hash

    result = {"arch": weights.arch, "weights": weights.source_format, "weights_hash": weights_hash(weights)}
    for mode in MODES:
        print(f"{weights.arch}, {mode} ...", file=sys.stderr)
        seconds, moments = timings(weights, mode, options)
        features = feature_errors(weights, moments, mode, options)
        result[mode] = {**seconds, **features}
    result["memory_mb"] = {str(count): memory(weights.arch, count, options) for count in (1, 8)}
    return result


def timings(weights: BackboneWeights, mode: str, options: argparse.Namespace) -> tuple[dict, dict[str, Moments]]:
    """Seconds of the two passes, in alternation, and the moments."""
    import timm
    import torch

    from polyscene.downstream.multitask.rcm.moments import response_moments
    from polyscene.downstream.multitask.rcm.network import adapted_convolutions

    torch.set_num_threads(1)
    body = timm.create_model(weights.arch, num_classes=0).eval().to(memory_format=torch.channels_last)
    body.load_state_dict(weights.state)
    body.to(options.device)
    names = adapted_convolutions(body, mode)

    @torch.no_grad()
    def plain() -> None:
        for images in batches(options):
            body.forward_features(images.to(options.device))

    def seconds(work) -> float:
        wait(options.device)
        start = time.perf_counter()
        work()
        wait(options.device)
        return time.perf_counter() - start

    found: dict[str, Moments] = {}
    plain_seconds, moment_seconds = [], []
    plain()
    for _ in range(options.rounds):
        plain_seconds.append(seconds(plain))
        moment_seconds.append(seconds(lambda: found.update(response_moments(body, batches(options), names=names))))
    ratios = [slow / fast for slow, fast in zip(moment_seconds, plain_seconds)]
    result = {
        "convolutions": len(names),
        "forward_seconds": round(statistics.median(plain_seconds), 3),
        "moments_seconds": round(statistics.median(moment_seconds), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_rounds": [round(ratio, 3) for ratio in ratios],
    }
    return result, found


def feature_errors(
    weights: BackboneWeights, moments: dict[str, Moments], mode: str, options: argparse.Namespace
) -> dict:
    """Relative to the largest feature: the ablations at full rank, and rank 24/32 with and without the correction."""
    import torch

    from polyscene.downstream.backbones import LAYERS, feature_maps
    from polyscene.downstream.multitask.rcm import network
    from polyscene.downstream.multitask.rcm.response_init import resolve_rank, response_basis

    bases = {name: response_basis(each) for name, each in moments.items()}
    by_moments = {id(each): bases[name] for name, each in moments.items()}
    images = pictures(options, 4, measured=False)

    @torch.no_grad()
    def features(encoder) -> list[Tensor]:
        return encoder(images) if encoder is plain else encoder(images, "task")

    def build(initialised: bool, normalized: bool, rank: float | None = None):
        # The eigen-decompositions of a wide network take longer than all the rest; three networks share them.
        with mock.patch.object(network, "response_basis", lambda each: by_moments[id(each)]):
            encoder = network.rcm_encoder(
                weights,
                moments if initialised else None,
                layers=LAYERS,
                reparameterize=mode,
                normalized=normalized,
                rank=rank,
            )
        encoder.add_task("task")
        return encoder

    plain = feature_maps(weights, layers=LAYERS, output_stride=16)
    expected = features(plain)
    identity = {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(features(build(*choice)), expected))
        for name, choice in ABLATIONS.items()
    }
    reduced = build(True, True, RANK)

    def error() -> float:
        return float((features(reduced)[-1] - expected[-1]).norm() / expected[-1].norm())

    corrected = error()
    for pair in reduced.pairs:
        if pair.convolution in bases:
            basis = bases[pair.convolution]
            lost = basis.lost_mean(resolve_rank(RANK, len(basis.mean)))
            reduced.body.get_submodule(pair.norm).tasks["task"].running_mean += lost.float()
    return {
        "largest_feature_difference": identity,
        "rank_24_of_32_error": {"mean_restored": round(corrected, 4), "not_restored": round(error(), 4)},
    }


def batches(options: argparse.Namespace) -> Iterator[Tensor]:
    """Normalised batches of images that are made once; what streams for memory repeats the first batch."""
    images = pictures(options, options.batch_size if options.stream else options.images, measured=True)
    for start in range(0, options.images, options.batch_size):
        first = start % len(images)
        yield images[first : first + min(options.batch_size, options.images - start)]


@functools.cache
def _pictures(photos: str | None, count: int, size: int, seed: int, measured: bool) -> Tensor:
    import torch

    from polyscene.downstream.multitask.rcm.image_moments import find_images
    from polyscene.runtime.features import evaluation_crop, normalise, resize_for
    from polyscene.runtime.images import read_image

    if photos is None:
        images = smooth_images(count, size, seed + (not measured))
    else:
        # Every other photo is measured, the ones between are for the errors.
        files = find_images(photos)[0 if measured else 1 :: 2]
        chosen = [files[i * len(files) // count] for i in range(count)]
        crops = [evaluation_crop(read_image(file), resize_for(size), size) for file in chosen]
        images = normalise(torch.stack(crops))
    return images.contiguous(memory_format=torch.channels_last)


def pictures(options: argparse.Namespace, count: int, *, measured: bool) -> Tensor:
    """(count, 3, size, size) normalised; others for measuring than for the errors."""
    return _pictures(options.photos, count, options.size, options.seed, measured)


def smooth_images(count: int, size: int, seed: int) -> Tensor:
    """(count, 3, size, size) like normalised photos: mostly low frequencies, colours that go together."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    for cells in (4, 16, 64):
        for channels, amount in ((1, 1.0), (3, 0.3)):
            noise = torch.randn(count, channels, cells, cells, generator=generator)
            images += amount * (4 / cells) ** 0.5 * F.interpolate(noise, size=(size, size), mode="bilinear")
    return images


def random_weights(arch: str, options: argparse.Namespace) -> BackboneWeights:
    """Random filters; BatchNorms with the statistics of the images and weak branches, as trained networks have."""
    import timm
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck

    from polyscene.runtime.weights import BackboneWeights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = timm.create_model(arch, num_classes=0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                torch.nn.init.uniform_(module.weight, 0.4, 1.2)
                torch.nn.init.normal_(module.bias, 0, 0.3)
        for block in model.modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                last.weight.data.mul_(0.4)
        with torch.no_grad():
            model.train()(smooth_images(16, options.size, options.seed + 2))
    return BackboneWeights(arch, model.state_dict(), source_format="random filters, measured BatchNorms")


def memory(arch: str, times: int, options: argparse.Namespace) -> float:
    """Largest resident memory, MB (2^20 bytes), of a process that streams `times` as many images."""
    command = [sys.executable, __file__, "--stream", f"{arch}:{times}", "--images", str(options.images)]
    command += ["--batch-size", str(options.batch_size), "--size", str(options.size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def streamed_memory(options: argparse.Namespace, request: str) -> float:
    """What :func:`memory` runs in its process: every batch is new memory, as that of a data loader is."""
    import timm
    import torch

    from polyscene.downstream.multitask.rcm.moments import response_moments

    arch, times = request.split(":")
    torch.set_num_threads(1)
    body = timm.create_model(arch, num_classes=0).eval().to(memory_format=torch.channels_last)
    options.images *= int(times)
    response_moments(body, (images.clone() for images in batches(options)))
    return round(peak_mb(), 1)


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB (2^20 bytes)."""
    try:
        # Linux's getrusage also remembers the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def print_tables(results: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    times = Table(title="Response moments against a plain forward pass")
    for column in ("backbone", "convolutions", "forward s", "moments s", "ratio"):
        times.add_column(column, justify="left" if column == "backbone" else "right")
    errors = Table(title="Largest difference to the pretrained features; error at rank 24/32, mean restored or not")
    for column in ("backbone", *ABLATIONS, "restored", "not"):
        errors.add_column(column, justify="left" if column == "backbone" else "right")
    for result in results:
        for mode in MODES:
            numbers, name = result[mode], f"{result['arch']}, {mode}"
            seconds = (f"{numbers[key]:.2f}" for key in ("forward_seconds", "moments_seconds", "ratio"))
            times.add_row(name, str(numbers["convolutions"]), *seconds)
            errors.add_row(
                name,
                *(f"{value:.1e}" for value in numbers["largest_feature_difference"].values()),
                *(f"{value:.3f}" for value in numbers["rank_24_of_32_error"].values()),
            )
    console = Console()
    console.print(times)
    console.print(errors)
    for result in results:
        few, many = result["memory_mb"].values()
        console.print(f"{result['arch']}: peak memory {few:.0f} MB; of 8x as many images {many:.0f} MB")


def wait(device: str) -> None:
    """Until the device has done what it was asked for."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return device


if __name__ == "__main__":
    main()
