"""What became of a chain: ``chain.json`` in its folder, read again by ``polyscene chain`` and ``polyscene jobs``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from polyscene.runtime.files import write_text

from .cluster.job_record import now

CHAIN_FILE = "chain.json"
StepState = Literal["waiting", "submitted", "running", "completed", "failed", "cancelled"]


@dataclass
class StepRecord:
    """One step.

    Attributes:
        command: its words.
        after: the steps it waits for.
        run: folder of its job.
        state: ``completed`` also where it was finished before; ``submitted`` to SLURM, which knows more;
            ``cancelled`` because of another step, which ``message`` names.
        job_id: of the last attempt; empty if it never started.
        message: why it failed or was cancelled.
    """

    command: list[str]
    after: list[str]
    run: str
    state: StepState = "waiting"
    job_id: str = ""
    message: str = ""


@dataclass
class ChainRecord:
    """A chain as it was last started.

    Attributes:
        chain: the file.
        words: that changed it.
        steps: name -> step, in an order in which they can run.
        updated: ISO time of the last change.
    """

    chain: str
    words: list[str]
    steps: dict[str, StepRecord] = field(default_factory=dict)
    updated: str = ""


def write_chain_record(folder: Path, record: ChainRecord) -> None:
    """Put ``chain.json`` into a folder, whole or not at all."""
    record.updated = now()
    write_text(folder / CHAIN_FILE, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def read_chain_record(folder: Path) -> ChainRecord | None:
    """The record of a folder; None if there is none, or it is damaged."""
    try:
        values = json.loads((folder / CHAIN_FILE).read_text(encoding="utf-8"))
        steps = {name: StepRecord(**step) for name, step in values.pop("steps").items()}
        return ChainRecord(**values, steps=steps)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def find_chain_records(folder: Path, depth: int = 3) -> list[ChainRecord]:
    """The chains recorded in a folder and some levels below."""
    found = []
    base = len(folder.parts)
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if CHAIN_FILE in files:
            record = read_chain_record(path)
            found += [record] if record is not None else []
        if len(path.parts) - base >= depth:
            folders.clear()
    return found


def dependants(after: Mapping[str, list[str]], name: str) -> list[str]:
    """The steps that wait for a step, directly or through others, in the order of the mapping."""
    found = {name}
    for other, waits_for in after.items():
        if found.intersection(waits_for):
            found.add(other)
    return [other for other in after if other in found and other != name]
