"""A progress bar on a terminal, nothing elsewhere (the log lines remain)."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class ProgressBar:
    """Steps done, time left and a line of current numbers.

    Args:
        console: where to draw; only drawn on a terminal.
        title: shown before the bar.
        total: number of steps.
        done: steps that were done before.
    """

    def __init__(self, console: Console, title: str, total: int, done: int = 0):
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, done: int, numbers: str | None = None) -> None:
        """Move to ``done`` steps; ``numbers`` replaces the text at the end of the line."""
        if numbers is None:
            self._progress.update(self._task, completed=done)
        else:
            self._progress.update(self._task, completed=done, numbers=numbers)
