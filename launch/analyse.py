"""``polyscene analyse``: the figures of the RCM paper, for a user's own models."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from polyscene.runtime.config import build, parse_words
from polyscene.runtime.errors import UserError

from .analyse_config import SCHEMAS, AnalyseConfig, check_values


def analyse(what: str, words: Sequence[str]) -> int:
    """Run one analysis; returns the exit code.

    Args:
        what: ``gradients``, ``features`` or ``parameters``.
        words: runs (for ``parameters`` one run or config), and ``key=value`` settings.

    Raises:
        UserError: an unknown analysis, no run, or wrong values, runs, data or output folder.
    """
    config = parse_arguments(what, words)
    check_values(config)
    module = importlib.import_module(f".analyse_{what}", __package__)
    return getattr(module, f"analyse_{what}")(config)


def parse_arguments(what: str, words: Sequence[str]) -> AnalyseConfig:
    """Split a command line into runs and settings.

    Raises:
        UserError: an unknown analysis, no run, too many, or a wrong setting.
    """
    if what not in SCHEMAS:
        raise UserError(f"analysis '{what}' does not exist; choose from {', '.join(SCHEMAS)}")
    # A folder whose name has an equals sign is a run.
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    runs = [word for word in words if word not in settings]
    if not runs:
        raise UserError(f"no run is named; give polyscene analyse {what} RUN")
    if what != "features" and len(runs) > 1:
        raise UserError(f"analyse {what} looks at one run, not at {len(runs)}; name one")
    if len(set(runs)) < len(runs):
        raise UserError("a run is named twice; name each once")
    values = parse_words(settings)
    if "runs" in values:
        raise UserError("runs is no key; name them without runs=")
    return build(SCHEMAS[what], {**values, "runs": runs}, source=f"analyse {what}")
