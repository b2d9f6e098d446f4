"""``polyscene analyse``: figures and tables of the RCM paper and of the thesis, for a user's own models and data."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

from polyscene.runtime.config import build, parse_words
from polyscene.runtime.errors import UserError

from .analyse_config import SCHEMAS, AnalyseConfig, check_values

_OF_SEVERAL = ("features", "resources")


def analyse(what: str, words: Sequence[str]) -> int:
    """Run one analysis; returns the exit code.

    Args:
        what: a key of `SCHEMAS`.
        words: runs or configs, and ``key=value`` settings.

    Raises:
        UserError: an unknown analysis, no run, or wrong values, runs, data or output folder.
    """
    config = parse_arguments(what, words)
    check_values(config)
    module = importlib.import_module(f".analyse_{what}", __package__)
    return getattr(module, f"analyse_{what}")(config)


def parse_arguments(what: str, words: Sequence[str]) -> AnalyseConfig:
    """Split a command line into runs and settings.

    Where the analysis looks at a config, settings whose key has a dot are changes of the config.

    Raises:
        UserError: an unknown analysis, no run, too many, or a wrong setting.
    """
    if what not in SCHEMAS:
        raise UserError(f"analysis '{what}' does not exist; choose from {', '.join(SCHEMAS)}")
    # A folder whose name has an equals sign is a run.
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    runs = [word for word in words if word not in settings]
    of_config = "overrides" in {field.name for field in dataclasses.fields(SCHEMAS[what])}
    subject = "config" if of_config else "run"
    if not runs:
        raise UserError(f"no {subject} is named; give polyscene analyse {what} {subject.upper()}")
    if what not in _OF_SEVERAL and len(runs) > 1:
        raise UserError(f"analyse {what} looks at one {subject}, not at {len(runs)}; name one")
    if len(set(runs)) < len(runs):
        raise UserError(f"a {subject} is named twice; name each once")
    overrides = [word for word in settings if of_config and "." in word.partition("=")[0]]
    values = parse_words([word for word in settings if word not in overrides])
    if overrides:
        values["overrides"] = [*values.get("overrides", ()), *overrides]
    if "runs" in values:
        raise UserError("runs is no key; name them without runs=")
    return build(SCHEMAS[what], {**values, "runs": runs}, source=f"analyse {what}")
