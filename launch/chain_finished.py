"""Which steps of a chain have done their work: every command leaves a file that says so.

| command                                            | file                                                          |
|----------------------------------------------------|---------------------------------------------------------------|
| pretrain                                           | backbone.safetensors, trained to the end of the schedule      |
| multitask                                          | results.json, and a model trained to the end of the schedule  |
| probe, retrieve, propagate, cam, analyse           | results.json                                                  |
| scenes                                             | scenes.json                                                   |
| tasks merge, tasks remove                          | the model file                                                |
| export                                             | the exported file, not older than the steps it comes after    |
| report                                             | the page, not older than the steps it comes after             |
| predict, export --fold                             | the job's own word that this very command was completed       |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, read_results

from .chain_config import Chain
from .cluster.command_line import CommandLine
from .cluster.job_record import STATE_FILE, read_record, read_state
from .cluster.progress import read_progress, saved_metadata

# Commands that write their file anew in seconds: done again after any step that they come after.
_RENEWED = ("export", "report")


def finished_steps(chain: Chain) -> dict[str, Path]:
    """Name -> the file that says that the step is finished, of all steps that are."""
    found: dict[str, Path] = {}
    for step in chain.steps:
        file = finished_file(step.command)
        if file is None:
            continue
        if step.command.name in _RENEWED:
            if any(name not in found for name in step.after):
                continue
            newest = max((found[name].stat().st_mtime for name in step.after), default=0.0)
            if file.stat().st_mtime < newest:
                continue
        found[step.name] = file
    return found


def outdated_steps(chain: Chain, finished: Mapping[str, Path]) -> list[str]:
    """Finished steps that come after one which is not: what they found was found with something older."""
    return [step.name for step in chain.steps if step.name in finished and chain.before(step.name) - finished.keys()]


def finished_file(command: CommandLine) -> Path | None:
    """The file that says that a command is finished; None while it is not."""
    if command.name == "pretrain":
        return _pretrained(command.run, command.config)
    if command.name == "multitask":
        return _transferred(command.run, command.config)
    if command.name == "predict" or "--fold" in command.words:
        return _said_completed(command)
    in_folder = {"scenes": "scenes.json", "tasks": "model.safetensors"}.get(command.name, "results.json")
    is_file = command.name in ("export", "report") or command.output.suffix == ".safetensors"
    file = command.output if is_file else command.output / in_folder
    return file if file.is_file() else None


def _pretrained(run: Path, config: Any) -> Path | None:
    file = run / "backbone.safetensors"
    saved = saved_metadata(file)
    try:
        step, epochs = int(saved["step"]), float(saved["epochs"])
    except (KeyError, ValueError):
        return None
    stops = config.max_steps is not None and step >= config.max_steps
    return file if stops or epochs >= config.epochs else None


def _transferred(run: Path, config: Any) -> Path | None:
    file = run / "results.json"
    results = _results(file)
    if results is None:
        return None
    if config.seeds is not None:
        return file if results.protocol.get("seeds") == list(config.seeds) else None
    if config.iterations == 0:
        return file
    steps = _trained_steps(run / "model.safetensors")
    if steps is None:
        return None
    # The length of an epoch is known from what was logged; a config given in iterations needs none.
    total = config.iterations if config.iterations is not None else read_progress(run).total
    end = min((limit for limit in (total, config.max_steps) if limit is not None), default=None)
    return file if end is None or steps >= end else None


def _trained_steps(model: Path) -> int | None:
    try:
        return int(json.loads(saved_metadata(model)["metadata"])["steps"])
    except (KeyError, ValueError, TypeError):
        return None


def _said_completed(command: CommandLine) -> Path | None:
    record, state = read_record(command.run), read_state(command.run)
    same = record is not None and tuple(record.command) == command.words
    if not same or state is None or state.state != "completed" or state.job_id != record.job_id:
        return None
    return command.run / STATE_FILE if command.output.is_dir() else None


def _results(file: Path) -> Evaluation | None:
    try:
        return read_results(file)
    except UserError:
        return None
