"""A multi-task config that an analysis only looks at: nothing of it is trained, so that less of it must be given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyscene.runtime.config import build, config_values

from .multitask_config import MultitaskConfig


def named_config(name: str, overrides: Sequence[str] = (), *, without_data: bool = False) -> MultitaskConfig:
    """The config of a file, of a shipped name, or of a run.

    Args:
        name: a YAML file, a shipped name, or the directory of a run.
        overrides: ``key=value`` words that change it.
        without_data: whether ``data.root`` may be left out.

    Raises:
        UserError: no such config, or it is wrong.
    """
    of_run = Path(name) / "config.yaml"
    values = config_values(of_run if of_run.is_file() else name, overrides)
    values.setdefault("out", "not written")
    if without_data and isinstance(values.get("data"), dict):
        values["data"].setdefault("root", "not read")
    return build(MultitaskConfig, values, source=name)
