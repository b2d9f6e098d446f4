"""``polyscene probe``: frozen features of a backbone, beside those of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from polyscene.downstream.frozen.knn import LabelledImages, align_classes, knn_probe
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run import environment
from polyscene.runtime.weights import load_backbone, read_weights
from polyscene.ssl.moco.encoder import create_backbone
from polyscene.ssl.sources import open_source

from .probe_config import ProbeConfig


def probe(config: ProbeConfig) -> int:
    """Measure, print a table, write results.json; returns the exit code.

    Raises:
        UserError: wrong weights, data or output folder.
    """
    for key, value in (("k", config.k), ("resize", config.resize), ("crop", config.crop)):
        if value < 1:
            raise UserError(f"{key}={value} is too small; it must be at least 1")
    if config.temperature <= 0:
        raise UserError(f"temperature={config.temperature} must be greater than 0")
    console = Console(stderr=True, highlight=False)
    device = choose_device(config.device)
    backbone, arch, where = _backbone(config, console)
    train, test = _labelled(config.data.train, "data.train"), _labelled(config.data.test, "data.test")
    test = align_classes(test, train)
    out = Path(config.out)
    make_folder(out)
    subjects = {"weights": backbone}
    if config.baseline == "random" and config.weights != "random":
        subjects["random"] = _random(arch, config.seed)
    scores = {}
    for name, module in subjects.items():
        module.to(device, memory_format=torch.channels_last)
        scores[name] = knn_probe(
            module,
            train,
            test,
            k=config.k,
            temperature=config.temperature,
            resize=config.resize,
            crop=config.crop,
            device=device,
            workers=config.workers,
        )
    results = {
        "knn_accuracy": scores["weights"],
        "baseline": {"random": scores["random"]} if "random" in scores else None,
        "protocol": {
            **to_dict(config),
            "arch": arch,
            "train_images": len(train.paths),
            "test_images": len(test.paths),
            "classes": len(train.class_names),
            "chance": 1 / len(train.class_names),
        },
        "environment": environment(),
    }
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    table = Table(title=f"kNN (k = {config.k}): {len(test.paths)} images, {len(train.class_names)} classes")
    table.add_column("backbone")
    table.add_column("accuracy", justify="right")
    table.add_row(where, f"{100 * scores['weights']:.1f}%")
    if "random" in scores:
        table.add_row(f"{arch}, random initialisation", f"{100 * scores['random']:.1f}%")
    table.add_row("chance", f"{100 / len(train.class_names):.1f}%")
    Console().print(table)
    console.print(f"results: '{out / 'results.json'}'", markup=False, soft_wrap=True)
    return 0


def _backbone(config: ProbeConfig, console: Console) -> tuple[nn.Module, str, str]:
    if config.weights == "random":
        arch = config.arch or "resnet50"
        return _random(arch, config.seed), arch, f"{arch}, random initialisation"
    weights = read_weights(config.weights, config.arch)
    backbone = create_backbone(weights.arch)
    console.print(f"{config.weights}: {load_backbone(backbone, weights)}", markup=False, soft_wrap=True)
    return backbone, weights.arch, str(config.weights)


def _random(arch: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create_backbone(arch)


def _labelled(folder: str, key: str) -> LabelledImages:
    source = open_source("folder", folder)
    if source.labels is None or source.class_names is None:
        raise UserError(f"{key}='{folder}' needs at least two sub-folders of images, one a class")
    paths = [source.path(i) for i in range(len(source))]
    return LabelledImages(paths, torch.as_tensor(source.labels), source.class_names)
