"""Tables on a terminal, and the same rows as plain aligned text where the output is piped; durations in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

# State -> colour; other states are failures.
_COLOURS = {"completed": "green", "running": "cyan", "pending": "yellow", "requeued": "yellow", "waiting": "yellow"}
_GAP = "  "
_NARROWEST = 33  # characters of a long column and its frame


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        right: whether its cells are numbers, aligned to the right.
        long: whether its cells may be broken into several lines.
    """

    name: str
    right: bool = False
    long: bool = False


def print_rows(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """Print rows: a table on a terminal, one line a row elsewhere.

    Args:
        console: where to.
        columns: what the cells of a row are; columns whose cells are all empty are left out.
        rows: a cell for every column.
        title: above the table.
    """
    used = [i for i, _ in enumerate(columns) if any(row[i] for row in rows)]
    columns, rows = [columns[i] for i in used], [[row[i] for i in used] for row in rows]
    if not console.is_terminal:
        for line in plain_lines(columns, rows, title):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    # Where the long cells would be squeezed into slivers they follow the table, each with the name of its row.
    below = _width(columns, rows) + _NARROWEST > console.width and not columns[0].long
    shown = [i for i, column in enumerate(columns) if not (below and column.long)]
    table = Table(title=title)
    for i in shown:
        column = columns[i]
        # The first column, a path, is broken if nothing else helps; numbers never are.
        broken = column.long or i == 0
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=not broken, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(columns[i], row[i]) for i in shown))
    console.print(table)
    for i, column in enumerate(columns):
        if below and column.long:
            for row in rows:
                if row[i]:
                    console.print(f"{row[0]}: {row[i]}", markup=False, soft_wrap=True)


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Characters of a table without its long columns."""
    widths = [
        max(len(text) for text in (column.name, *(row[i] for row in rows)))
        for i, column in enumerate(columns)
        if not column.long
    ]
    return sum(widths) + 3 * len(widths) + 1


def plain_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str | None = None) -> list[str]:
    """The heading and the rows as lines of equal columns; an empty cell is a dash, so that words can be counted."""
    cells = [[column.name for column in columns], *([text or "-" for text in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [title] if title else []
    for row in cells:
        padded = (t.rjust(w) if c.right else t.ljust(w) for c, t, w in zip(columns, row, widths))
        lines.append(_GAP.join(padded).rstrip())
    return lines


def format_duration(seconds: float | None) -> str:
    """``2d 03h``, ``3h 04m``, ``5m 06s`` or ``7s``; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part:02d}{smaller}"
    return f"{whole}s"


def _cell(column: Column, text: str) -> Text:
    if column.name != "state":
        return Text(text)
    return Text(text, style=_COLOURS.get(text.split(":")[0].split(" (")[0].rstrip("?"), "red"))
