"""Run directories on disk -> what a report says about them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Picture, read_results
from polyscene.runtime.run import read_run_config

from .curves import Curves, read_curves
from .protocols import is_sound

DEPTH = 4
"""Levels below a named directory that are searched for runs."""

_NOT_SEARCHED = {"checkpoints", "pictures", "tensorboard", "__pycache__", "node_modules"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
_CAPTIONS = {"views": "Crops drawn on the original images, and every view as the network gets it"}
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?= )")
_LONGEST_CONFIG = 100_000  # characters; anything longer is no config of ours
_MOST_WARNINGS = 5


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every run directory tells.

    Attributes:
        path: the directory.
        name: short name within this report.
        state: ``finished``, ``unfinished`` or ``damaged``.
        config: nested values of config.yaml; empty if it is missing or damaged.
        config_text: config.yaml as it is.
        versions: package -> version, from the head of config.yaml.
        started: first time in log.txt, ``YYYY-MM-DD HH:MM:SS``, or None.
        ended: last time in log.txt, or of the newest result; None if nothing tells.
        warnings: the last warnings of log.txt.
        problems: what could not be read, a sentence each.
        pictures: files relative to `path`, with captions.
    """

    path: Path
    name: str
    state: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    warnings: Sequence[str] = ()
    problems: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class PretrainRun(Run):
    """A pretraining.

    Attributes:
        curves: its metrics.jsonl.
        weights: metadata of backbone.safetensors, None before it is written.
    """

    curves: Curves
    weights: Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class EvaluationRun(Run):
    """An evaluation of a frozen backbone.

    Attributes:
        evaluation: its results.json, None if it is unfinished or damaged.
    """

    evaluation: Evaluation | None


def find_runs(places: Sequence[Path]) -> list[PretrainRun | EvaluationRun]:
    """All runs in these directories and up to `DEPTH` levels below, each once, with names that tell them apart.

    Raises:
        UserError: a place is no directory, or holds no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if place.is_file():
            raise UserError(f"'{place}' is a file; name the run directory that holds it")
        if not place.is_dir():
            raise UserError(f"'{place}' does not exist; name a run directory, or one that holds runs")
        here = {run.resolve(): run for run in _search(place, DEPTH, set())}
        if not here:
            raise UserError(
                f"'{place}' is not a run directory and holds none within {DEPTH} levels: no results.json, and no "
                f"config.yaml of a pretraining or an evaluation"
            )
        for real, run in here.items():
            found.setdefault(real, run)
    return [
        read_run(run, name)
        for run, name in zip(found.values(), _names([Path(os.path.abspath(run)) for run in found.values()]))
    ]


def read_run(path: Path, name: str) -> PretrainRun | EvaluationRun:
    """One run directory; what cannot be read is named in its ``problems``, nothing is raised."""
    problems: list[str] = []
    config, text = _config(path, problems)
    log = _lines(path / "log.txt")
    times = [match.group() for match in map(_TIME.match, log) if match]
    shared = {
        "path": path,
        "name": name,
        "config": config,
        "config_text": text,
        "versions": _versions(text),
        "started": times[0] if times else None,
        "warnings": _warnings(log),
    }
    ended = times[-1] if times else None
    if _kind(path) == "evaluation":
        evaluation, state = _evaluation(path, problems)
        pictures = evaluation.pictures if evaluation else ()
        ended = ended or _modified(path / "results.json")
        return EvaluationRun(
            **shared, evaluation=evaluation, state=state, pictures=pictures, ended=ended, problems=problems
        )
    curves, weights = read_curves(path / "metrics.jsonl"), _weights(path, problems)
    if curves.skipped:
        lines, were = ("1 line", "was") if curves.skipped == 1 else (f"{curves.skipped} lines", "were")
        problems.append(f"{lines} of metrics.jsonl could not be read and {were} skipped")
    return PretrainRun(
        **shared,
        curves=curves,
        weights=weights,
        state="finished" if weights is not None and not _goes_on(weights, curves) else "unfinished",
        ended=ended or _modified(path / "metrics.jsonl"),
        pictures=_listed_pictures(path),
        problems=problems,
    )


def _search(place: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    real = place.resolve()
    if real in seen:  # a link that leads back
        return
    seen.add(real)
    if _kind(place):
        yield place
    if depth == 0:
        return
    try:
        with os.scandir(place) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return
    for name in folders:
        if name not in _NOT_SEARCHED and not name.startswith("."):
            yield from _search(place / name, depth - 1, seen)


def _kind(path: Path) -> str | None:
    """``pretrain``, ``evaluation`` or None for a directory that is no run of ours."""
    if not (path / "config.yaml").is_file():
        return "evaluation" if _evaluation(path, [])[0] else None
    if (path / "results.json").is_file():
        return "evaluation"
    config, _ = _config(path, [])
    if "weights" in config:
        return "evaluation"
    if {"model", "views"} <= config.keys() or (path / "metrics.jsonl").is_file():
        return "pretrain"
    return None


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths relative to the nearest folder above all of them."""
    base = Path(os.path.commonpath(paths))
    if base in paths:
        base = base.parent
    return [path.relative_to(base).as_posix() if path != base else path.as_posix() for path in paths]


def _config(path: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    file = path / "config.yaml"
    if not file.is_file():
        problems.append("config.yaml is missing")
        return {}, ""
    text = "\n".join(_lines(file))[:_LONGEST_CONFIG]
    try:
        return read_run_config(path), text
    except (UserError, RecursionError):
        problems.append("config.yaml is damaged")
        return {}, text


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _versions(config_text: str) -> dict[str, str]:
    pairs = (line[1:].partition(":") for line in config_text.splitlines() if line.startswith("# "))
    return {name.strip(): version.strip() for name, separator, version in pairs if separator}


def _warnings(log: Sequence[str]) -> tuple[str, ...]:
    found = (line.partition(" warning: ")[2] for line in log if _TIME.match(line))
    return tuple(dict.fromkeys(text for text in found if text))[-_MOST_WARNINGS:]


def _evaluation(path: Path, problems: list[str]) -> tuple[Evaluation | None, str]:
    if not (path / "results.json").is_file():
        return None, "unfinished"
    try:
        evaluation = read_results(path / "results.json")
        if is_sound(evaluation):
            return evaluation, "finished"
    except (UserError, RecursionError):
        pass
    problems.append("results.json is damaged or of another version; run the evaluation again with overwrite=true")
    return None, "damaged"


def _weights(path: Path, problems: list[str]) -> dict[str, str] | None:
    """Metadata of the backbone that a finished pretraining leaves; its tensors stay on disk."""
    file = path / "backbone.safetensors"
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError, json.JSONDecodeError):
        problems.append("backbone.safetensors is damaged")
        return None


def _goes_on(weights: Mapping[str, str], curves: Curves) -> bool:
    """Whether training was continued past the backbone that is there."""
    step = weights.get("step", "")
    return step.isdigit() and curves.last_step > int(step)


def _modified(file: Path) -> str | None:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.stat().st_mtime))
    except OSError:
        return None


def _listed_pictures(path: Path) -> tuple[Picture, ...]:
    folder = path / "pictures"
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES) if folder.is_dir() else []
    return tuple(Picture(f"pictures/{p.name}", _CAPTIONS.get(p.stem, p.stem.replace("_", " "))) for p in files)
