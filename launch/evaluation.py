"""What every evaluation command does before and after it measures: run directory, backbones, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from polyscene.runtime.config import to_dict
from polyscene.runtime.results import Evaluation, per_class_table, results_table, write_results
from polyscene.runtime.run import RunDirectory, open_run
from polyscene.runtime.weights import BackboneWeights, read_weights
from polyscene.ssl.moco.encoder import create_backbone

from .evaluation_config import HARMLESS, EvaluationConfig


@dataclass(frozen=True)
class Subject:
    """A backbone under test.

    Attributes:
        name: ``weights`` for the measured one, ``random`` for the baseline.
        title: its name for people.
        weights: its weights; every evaluation builds the network it needs from them.
    """

    name: str
    title: str
    weights: BackboneWeights


def open_subjects(config: EvaluationConfig) -> list[Subject]:
    """The backbone that ``config.weights`` names and, unless switched off, random weights of its architecture.

    Raises:
        UserError: no such file, unknown format, or another architecture than ``config.arch``.
    """
    if config.weights == "random":
        weights = random_weights(config.arch or "resnet50", config.seed)
        return [Subject("weights", f"{weights.arch}, random initialisation", weights)]
    weights = read_weights(config.weights, config.arch)
    subjects = [Subject("weights", config.weights, weights)]
    if config.baseline == "random":
        baseline = random_weights(weights.arch, config.seed)
        subjects.append(Subject("random", f"{weights.arch}, random initialisation", baseline))
    return subjects


def random_weights(arch: str, seed: int) -> BackboneWeights:
    """The weights of a backbone as it is initialised; torch's random state is left as it was.

    Raises:
        UserError: not a ResNet that timm has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = create_backbone(arch).state_dict()
    return BackboneWeights(arch, state, source_format="random initialisation")


def open_evaluation(config: EvaluationConfig) -> RunDirectory | None:
    """The run directory, to be called once everything that can be refused was looked at; None if it is finished.

    Raises:
        UserError: another config's run is there, or the folder is not writable.
    """
    path, _ = open_run(config.out, to_dict(config), overwrite=config.overwrite, may_differ=HARMLESS)
    run = RunDirectory(path)
    if (path / "results.json").exists():
        run.log(f"'{path}' is already finished; overwrite=true starts afresh")
        return None
    return run


def finish_evaluation(run: RunDirectory, evaluation: Evaluation, per_class: Sequence[str] = ()) -> None:
    """Write results.json and print its table, after a table a class of the metrics ``per_class``."""
    file = write_results(Path(run.path), evaluation)
    output = Console()
    for key in per_class:
        output.print(per_class_table(evaluation, key))
    output.print(results_table(evaluation))
    run.log(f"results: '{file}'")
