"""``polyscene analyse resources``: parameters, operations, memory and time of networks beside each other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from polyscene.downstream.multitask.analysis.inference import (
    CPU_MEMORY,
    CUDA_MEMORY,
    Network,
    PeakMemory,
    Setting,
    latencies,
    paired_ratios,
    peak_memory,
    prepared,
)
from polyscene.downstream.multitask.resources import Resources, measure_resources
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric
from polyscene.runtime.run import processor

from .analyse_config import ResourcesConfig
from .analyse_run import finish, open_folder
from .network_shapes import named_network

_METRICS = (
    Metric("parameters", "parameters", unit="M", better="lower"),
    Metric("macs", "MACs", unit="G", better="lower"),
    Metric("flops", "FLOPs", unit="G", better="lower"),
    Metric("memory", "peak memory", unit="MiB", better="lower"),
    Metric("latency", "latency", unit="ms", better="lower"),
)


@dataclass(frozen=True)
class Costs:
    """What one network costs.

    Attributes:
        counted: parameters and operations.
        memory: of a pass; None where nothing was run.
        seconds: of every timed pass.
    """

    counted: Resources
    memory: PeakMemory | None
    seconds: list[float]

    def values(self) -> dict[str, float]:
        """Metric key -> value, of what was measured."""
        found = {
            "parameters": self.counted.parameters / 1e6,
            "macs": self.counted.flops / 2e9,
            "flops": self.counted.flops / 1e9,
        }
        if self.memory is not None and self.memory.peak is not None:
            found["memory"] = self.memory.peak / 2**20
        if self.seconds:
            found["latency"] = 1e3 * statistics.median(self.seconds)
        return found


def analyse_resources(config: ResourcesConfig) -> int:
    """Build, count, run, print; returns the exit code. results.json is written where ``out`` says so.

    Raises:
        UserError: a wrong config, or a network that the machine has no memory for.
    """
    paths, names = _subjects(config)
    networks = {
        name: named_network(path, config.overrides, tasks=config.tasks, arch=config.arch)
        for name, path in zip(names, paths)
    }
    device = choose_device(config.device)
    counted = {name: measure_resources(network.build(), config.size) for name, network in networks.items()}
    folder = None
    if config.out is not None:
        folder = open_folder(config, "resources", may_differ=())
        if folder is None:
            return 0
    console = Console(stderr=True, highlight=False) if folder is None else folder.console
    _warn_of_other_tasks(networks, console)
    memory: dict[str, PeakMemory] = {}
    seconds: dict[str, list[float]] = {}
    if config.repeats:
        setting = Setting(config.size, config.batch, config.precision, str(device))
        memory = _memory(networks, setting, console)
        seconds = _times(networks, setting, config.repeats, console)
    found = {name: Costs(counted[name], memory.get(name), seconds.get(name, [])) for name in networks}
    table = _table(config, found, _machine(device))
    if folder is None:
        Console().print(table)
    else:
        finish(folder, _evaluation(config, networks, found, device), table)
    return 0


def _memory(networks: Mapping[str, Network], setting: Setting, console: Console) -> dict[str, PeakMemory]:
    found = {}
    with ProgressBar(console, "memory", len(networks)) as bar:
        for name, network in networks.items():
            found[name] = peak_memory(network, setting)
            bar.update(len(found))
    return found


def _times(networks: Mapping[str, Network], setting: Setting, repeats: int, console: Console) -> dict[str, list[float]]:
    """Seconds of every pass of every network."""
    try:
        models = {name: prepared(network.build(), setting.device) for name, network in networks.items()}
        with ProgressBar(console, "passes", len(models) * repeats) as bar:
            return latencies(models, setting, repeats, progress=bar.update)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{len(networks)} networks do not fit into the GPU's memory together; name fewer") from error


def _subjects(config: ResourcesConfig) -> tuple[list[str], list[str]]:
    """Configs with the reference first, and short names that tell them apart."""
    paths = list(config.runs)
    if config.reference is not None:
        paths = [config.reference, *(path for path in paths if path != config.reference)]
    parts = [Path(path.removesuffix(".yaml").removesuffix(".yml")).parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    names = ["/".join(part[-depth:]) for part in parts]
    if len(set(names)) < len(names):
        raise UserError("a config is named twice; name each once")
    return paths, names


def _warn_of_other_tasks(networks: Mapping[str, Network], console: Console) -> None:
    reference, *others = networks
    for name in others:
        if set(networks[name].channels) != set(networks[reference].channels):
            console.print(
                f"warning: '{name}' has the tasks {', '.join(networks[name].channels)}, and '{reference}' "
                f"{', '.join(networks[reference].channels)}; add tasks=[...] to compare like with like",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def relative_costs(found: Mapping[str, Costs]) -> dict[str, dict[str, float]]:
    """Network -> metric key -> its value by that of the first network, minus 1; of latency the median over rounds."""
    reference = next(iter(found.values()))
    base = reference.values()
    relative = {}
    for name, costs in found.items():
        own = costs.values()
        relative[name] = {key: own[key] / base[key] - 1 for key in own if key in base}
        if costs.seconds:
            relative[name]["latency"] = statistics.median(paired_ratios(costs.seconds, reference.seconds)) - 1
    return relative


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Milliseconds that a quarter of the passes, and three quarters, take at most."""
    if len(seconds) < 2:
        return 1e3 * seconds[0], 1e3 * seconds[0]
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return 1e3 * first, 1e3 * third


def _rounded(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def _evaluation(
    config: ResourcesConfig, networks: Mapping[str, Network], found: Mapping[str, Costs], device: torch.device
) -> Evaluation:
    """The reference's values as metrics; those of all below."""
    reference = next(iter(found))
    values = {name: costs.values() for name, costs in found.items()}
    metrics = [metric for metric in _METRICS if all(metric.key in each for each in values.values())]
    per_config = {m.key: {"weights": {name: each[m.key] for name, each in values.items()}} for m in metrics}
    return Evaluation(
        command="analyse",
        title=f"Resources of {len(found)} networks, one pass of {config.batch} x {config.size[0]}x{config.size[1]}",
        subject=reference,
        metrics=metrics,
        values={metric.key: values[reference][metric.key] for metric in metrics},
        per_class=per_config,
        protocol={
            "protocol": "resources",
            **to_dict(config),
            "machine": _machine(device),
            "memory_is": CUDA_MEMORY if device.type == "cuda" else CPU_MEMORY,
            "compared_with": reference,
            "resources": _details(networks, found),
        },
    )


def _details(networks: Mapping[str, Network], found: Mapping[str, Costs]) -> dict[str, dict[str, Any]]:
    relative = relative_costs(found)
    details = {}
    for name, costs in found.items():
        network = networks[name]
        details[name] = {
            "kind": network.options.kind,
            "arch": network.arch,
            "channels": dict(network.channels),
            "auxiliary": dict(network.auxiliary),
            "parameters": costs.counted.parameters,
            "shared_parameters": costs.counted.shared,
            "task_parameters": costs.counted.tasks,
            "macs_per_image": costs.counted.flops // 2,
            "flops_per_image": costs.counted.flops,
            "relative": relative[name],
        }
        if costs.memory is not None:
            details[name]["weights_bytes"] = costs.memory.weights
            details[name]["peak_memory_bytes"] = costs.memory.peak
        if costs.seconds:
            details[name]["latency_ms"] = 1e3 * statistics.median(costs.seconds)
            details[name]["latency_quartiles_ms"] = list(_quartiles(costs.seconds))
            details[name]["passes_ms"] = [1e3 * seconds for seconds in costs.seconds]
    return details


def _table(config: ResourcesConfig, found: Mapping[str, Costs], machine: str) -> Table:
    height, width = config.size
    pass_ = f"One pass of {config.batch} x {height}x{width}, {config.precision}; {machine}"
    table = Table(
        title=pass_ if config.repeats else f"An image of {height}x{width}",
        caption="MACs: multiply-adds of an image, which papers often call FLOPs; FLOPs = 2 MACs. Percentages: against "
        "the first row." + (" Latency: median and quartiles" if config.repeats else ""),
    )
    values = {name: costs.values() for name, costs in found.items()}
    metrics = [metric for metric in _METRICS if any(metric.key in each for each in values.values())]
    table.add_column("network", overflow="fold")
    for metric in metrics:
        table.add_column(f"{metric.label}\n{metric.unit}", justify="right", no_wrap=True)
    relative = relative_costs(found)
    for number, (name, costs) in enumerate(found.items()):
        texts = [_text(metric.key, values[name], costs) for metric in metrics]
        if number:
            shares = [relative[name].get(metric.key) for metric in metrics]
            texts = [f"{text}\n" + ("-" if share is None else f"{share:+.1%}") for text, share in zip(texts, shares)]
        table.add_row(name, *texts)
    return table


def _text(key: str, values: Mapping[str, float], costs: Costs) -> str:
    if key not in values:
        return "-"
    if key == "latency":
        return "{} ({}-{})".format(*map(_rounded, (values[key], *_quartiles(costs.seconds))))
    return f"{values[key]:.0f}" if key == "memory" else f"{values[key]:.2f}"
