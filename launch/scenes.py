"""``polyscene scenes``: write the built-in data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polyscene.downstream.scenes.build import write_scenes
from polyscene.runtime.config import build, parse_words
from polyscene.runtime.progress import ProgressBar

from .limits import check_at_least
from .scenes_config import ScenesConfig


def scenes(out: Path, words: Sequence[str]) -> None:
    """Draw scenes into a folder, with a progress bar.

    Raises:
        UserError: wrong words, or a folder that holds something else.
    """
    config = build(ScenesConfig, parse_words(words), source="scenes")
    check_at_least([("count", config.count, 1), ("seed", config.seed, 0), ("workers", config.workers, 1)])
    console = Console(stderr=True, highlight=False)
    with ProgressBar(console, "drawing scenes", config.count) as bar:
        summary = write_scenes(
            out,
            count=config.count,
            size=config.size,
            seed=config.seed,
            workers=config.workers,
            progress=lambda done, total: bar.update(done),
        )
    done = "was already complete" if summary.already_complete else "written"
    console.print(
        f"'{summary.out}' {done}: {summary.images} images of {summary.rooms} rooms "
        f"({summary.train} to train, {summary.held_out} held out); overview: '{summary.contact_sheet}'",
        markup=False,
        soft_wrap=True,
    )
