"""Runs -> one HTML page that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from polyscene.runtime.files import write_text
from polyscene.runtime.run import environment

from .comparison import Group, group_evaluations
from .overview import heading, label_of, letters, overview_row, subject_name
from .palette import css_variables, series_colour, series_style
from .per_class import class_tables
from .pictures import BUDGET, Embedded, embed_pictures
from .pretraining import config_rows, draw_charts, last_values, state_of
from .runs import EvaluationRun, PretrainRun, Run

# Widths that pictures are shown at, in pixels: larger ones get a switch to their full size.
_COLUMN, _PHONE = 860, 480


@dataclass(frozen=True)
class Figure:
    """A picture of a run.

    Attributes:
        key: unique on the page.
        caption: what it shows.
        alt: the same with the run, for those who do not see it.
        picture: None where there is none.
        problem: why there is none; empty otherwise.
    """

    key: str
    caption: str
    alt: str
    picture: Embedded | None
    problem: str

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole column."""
        return self.picture is None or self.picture.width > 640 or self.picture.width > 1.9 * self.picture.height

    @property
    def can_grow(self) -> bool:
        """Whether its full size is larger than a phone's column."""
        return self.picture is not None and self.picture.width > _PHONE

    @property
    def fits_column(self) -> bool:
        """Whether a wide screen shows all of it."""
        return self.picture is not None and self.picture.width <= _COLUMN


def write_report(
    runs: Sequence[PretrainRun | EvaluationRun],
    out: Path,
    *,
    title: str | None = None,
    budget: int = BUDGET,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the page atomically.

    Args:
        runs: as :func:`~polyscene.downstream.report.runs.find_runs` found them.
        out: the file; its folder must exist.
        title: of the page; None: made of the runs' names.
        budget: bytes of all pictures together.
        progress: called with the number of pictures embedded.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    files = [file for run in runs for file in picture_files(run)]
    embedded = embed_pictures(files, budget=budget, progress=progress)
    write_text(out, render(runs, embedded, title=title or default_title(runs), written=time.strftime("%Y-%m-%d %H:%M")))
    return out


def picture_files(run: Run) -> list[Path]:
    """The picture files of a run that lie inside its directory."""
    return [run.path / picture.file for picture in run.pictures if _is_inside(picture.file)]


def default_title(runs: Sequence[Run]) -> str:
    """The run's name, or how many runs there are."""
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"


def render(
    runs: Sequence[PretrainRun | EvaluationRun],
    embedded: Mapping[Path, Embedded | str],
    *,
    title: str,
    written: str,
) -> str:
    """The page as text.

    Args:
        runs: at least one.
        embedded: picture file -> what :func:`~polyscene.downstream.report.pictures.embed_pictures` made of it.
        title: of the page.
        written: date and time.
    """
    pretrain = [run for run in runs if isinstance(run, PretrainRun)]
    groups = group_evaluations(run for run in runs if isinstance(run, EvaluationRun))
    leftovers = [run for run in runs if isinstance(run, EvaluationRun) and run.evaluation is None]
    # In the order of the sections.
    runs = [*pretrain, *(run for group in groups for run in group.runs), *leftovers]
    anchors = {run.name: f"run-{i}" for i, run in enumerate(runs, start=1)}
    known = {str(run.path.resolve() / end): run.name for run in pretrain for end in ("", "backbone.safetensors")}
    sections = [_evaluation_section(i, g, anchors, embedded, known) for i, g in enumerate(groups, start=1)]
    environment_ = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment_.filters["path"] = breakable
    return environment_.get_template("page.html.jinja").render(
        title=title,
        written=written,
        version=environment()["polyscene"],
        style=Markup(css_variables() + _template("style.css")),
        counts=_counts(pretrain, len(runs) - len(pretrain)),
        overview=[(overview_row(run), anchors[run.name], run.problems) for run in runs],
        pretraining=_pretraining_section(pretrain, anchors, embedded),
        sections=sections,
        leftovers=[(run, anchors[run.name]) for run in leftovers],
        label_of=label_of,
        series_style=series_style,
        series_colour=series_colour,
    )


def breakable(text: object) -> Markup:
    """A path or name, escaped, that a narrow column may break after its separators."""
    return Markup(re.sub(r"([/_])(?=.)", r"\1<wbr>", str(escape(str(text)))))


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _counts(pretrain: Sequence[PretrainRun], evaluations: int) -> str:
    words = [(len(pretrain), "pretraining run"), (evaluations, "evaluation")]
    return ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in words if n)


def _pretraining_section(
    runs: Sequence[PretrainRun], anchors: Mapping[str, str], embedded: Mapping[Path, Embedded | str]
) -> dict | None:
    if not runs:
        return None
    named = list(zip(letters(len(runs)), runs))
    charts, axis = draw_charts(named)
    shown: dict[str, str] = {}
    return {
        "runs": [
            {
                "letter": letter,
                "run": run,
                "anchor": anchors[run.name],
                "state": state_of(run),
                "figures": _figures(run, anchors[run.name], embedded, shown),
            }
            for letter, run in named
        ],
        "config": config_rows(runs),
        "charts": charts,
        "axis": axis,
        "last": last_values(named, charts),
    }


def _evaluation_section(
    number: int,
    group: Group,
    anchors: Mapping[str, str],
    embedded: Mapping[Path, Embedded | str],
    known: Mapping[str, str],
) -> dict:
    subjects = {run.name: subject_name(run, known) for run in group.runs}
    shown: dict[str, str] = {}
    return {
        "anchor": f"evaluation-{number}",
        "heading": heading(group.command, group.protocol),
        "group": group,
        "titles": list(dict.fromkeys(run.evaluation.title for run in group.runs)),
        "class_tables": class_tables(group, subjects),
        "runs": [
            {
                "run": run,
                "anchor": anchors[run.name],
                "subject": subjects[run.name],
                "protocol": yaml.safe_dump(_plain(run.evaluation.protocol), sort_keys=False, allow_unicode=True),
                "figures": _figures(run, anchors[run.name], embedded, shown),
            }
            for run in group.runs
        ],
        "subjects": subjects,
        "anchors": anchors,
        "has_best": any(cell.best for block in group.blocks for row in block.rows for cell in row.cells),
        "has_published": any(row.kind == "published" for block in group.blocks for row in block.rows),
    }


def _figures(run: Run, anchor: str, embedded: Mapping[Path, Embedded | str], shown: dict[str, str]) -> list[Figure]:
    """The pictures of a run; one that another run showed before (``shown``: data -> run) is only mentioned."""
    figures = []
    for i, picture in enumerate(run.pictures, start=1):
        found = (
            embedded.get(run.path / picture.file, "")
            if _is_inside(picture.file)
            else f"{picture.file} lies outside the run"
        )
        problem = (found or f"{picture.file} was not embedded") if isinstance(found, str) else ""
        if isinstance(found, Embedded):
            before = shown.setdefault(found.uri, run.name)
            if before != run.name:
                problem = f"the same picture as in {before}"
        figures.append(
            Figure(
                key=f"{anchor}-picture-{i}",
                caption=picture.caption,
                alt=f"{picture.caption} ({run.name})",
                picture=None if problem else found,
                problem=problem,
            )
        )
    return figures


def _is_inside(file: str) -> bool:
    path = PurePath(file)
    return not path.is_absolute() and ".." not in path.parts


def _plain(value):
    """Nested mappings and lists as YAML writes them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
