"""``polyscene report``: runs -> one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polyscene.downstream.report.page import picture_files, write_report
from polyscene.downstream.report.runs import find_runs
from polyscene.runtime.errors import UserError
from polyscene.runtime.files import make_folder
from polyscene.runtime.progress import ProgressBar

_KEYS = ("out", "title")


def report(runs: Sequence[str]) -> int:
    """Write the page and print its path; returns the exit code.

    Without ``out=FILE.html`` the page is ``report.html`` in the named directory, or in the nearest one above all of
    them.

    Args:
        runs: directories that are runs or hold some, and the words ``out=FILE.html`` and ``title=TEXT``.

    Raises:
        UserError: no directory, a directory without runs, a wrong word, or a place that is not writable.
    """
    places, words = split_words(runs)
    out = Path(words["out"]) if "out" in words else default_out(places)
    found = find_runs(places)
    make_folder(out.parent)
    console = Console(stderr=True, highlight=False)
    files = {file for run in found for file in picture_files(run)}
    with ProgressBar(console, "embedding pictures", len(files)) as bar:
        write_report(found, out, title=words.get("title"), progress=bar.update)
    for run in found:
        for problem in run.problems:
            console.print(f"warning: {run.path}: {problem}", style="yellow", markup=False, soft_wrap=True)
    print(out)
    return 0


def split_words(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Directories, and the values of ``out=`` and ``title=``.

    Raises:
        UserError: an unknown or empty word, one given twice, an ``out`` that is no HTML file, or no directory.
    """
    places: list[Path] = []
    words: dict[str, str] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or (key not in _KEYS and os.path.isdir(argument)):
            places.append(Path(argument))
            continue
        if key not in _KEYS:
            raise UserError(f"'{argument}': report knows the words out=FILE.html and title=TEXT, and run directories")
        if key in words:
            raise UserError(f"{key}= is given twice; give it once")
        if not value.strip():
            raise UserError(f"{key}= is empty; write {key}={'FILE.html' if key == 'out' else 'TEXT'} or leave it out")
        words[key] = value
    if not places:
        raise UserError("no run is named; give at least one run directory, or a directory that holds runs")
    out = words.get("out")
    if out and Path(out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={out} must name an HTML file, for example out={out.rstrip('/')}/report.html")
    if out and Path(out).is_dir():
        raise UserError(f"out={out} is a directory; name a file in it, for example out={out.rstrip('/')}/report.html")
    return places, words


def default_out(places: Sequence[Path]) -> Path:
    """``report.html`` in the only directory, or in the nearest one above all of them."""
    if len({place.resolve() for place in places}) == 1:
        return places[0] / "report.html"
    above = Path(os.path.commonpath([place.resolve() for place in places]))
    return Path(os.path.relpath(above)) / "report.html"
