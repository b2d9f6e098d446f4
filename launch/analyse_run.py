"""What every analysis does before and after it measures: models, data, folder, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.models.model_file import SavedModel, load_model
from polyscene.runtime.config import load_config, to_dict
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, write_results
from polyscene.runtime.run import RunDirectory, open_run

from .analyse_config import HARMLESS, AnalyseConfig
from .multitask_config import MultitaskConfig
from .multitask_model import open_split


@dataclass(frozen=True)
class OpenedRun:
    """A finished run of ``polyscene multitask``.

    Attributes:
        path: as the user named it.
        saved: its model and tasks.
    """

    path: Path
    saved: SavedModel

    @property
    def name(self) -> str:
        """Of its folder."""
        folder = self.path.resolve()
        return (folder if folder.is_dir() else folder.parent).name


def open_model(path: str) -> OpenedRun:
    """Read a run's model.

    Raises:
        UserError: there is none.
    """
    return OpenedRun(Path(path), load_model(path))


def config_of(run: OpenedRun, data: str | None) -> MultitaskConfig:
    """The config that says which images belong to a run.

    Args:
        run: whose own config is taken if ``data`` is None.
        data: another run, or a config.

    Raises:
        UserError: there is none.
    """
    if data is not None:
        file = Path(data) / "config.yaml"
        return load_config(MultitaskConfig, file if file.is_file() else data)
    folder = run.path if run.path.is_dir() else run.path.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"'{run.path}' has no config.yaml that names its images; add data=CONFIG or data=RUN")
    return load_config(MultitaskConfig, folder / "config.yaml")


def open_images(config: MultitaskConfig, split: str, run: OpenedRun, tasks: tuple[str, ...]) -> DenseImages:
    """A list of images with the targets of some of a run's tasks.

    Raises:
        UserError: see :func:`.multitask_model.open_split`.
    """
    return open_split(config, split, [run.saved.tasks[task].source or task for task in tasks])


def chosen_tasks(run: OpenedRun, tasks: tuple[str, ...] | None) -> tuple[str, ...]:
    """The tasks asked for, or all.

    Raises:
        UserError: one that the model lacks, or one named twice.
    """
    for task in tasks or ():
        run.saved.model.check_present(task)
    if tasks is not None and len(set(tasks)) < len(tasks):
        raise UserError(f"tasks={list(tasks)} names a task twice; name each once")
    return tasks or run.saved.model.tasks


def open_folder(config: AnalyseConfig, what: str, may_differ: Sequence[str] = HARMLESS) -> RunDirectory | None:
    """The folder for results, to be called once everything that can be refused was looked at; None if it is finished.

    Args:
        config: of the analysis.
        what: which one.
        may_differ: keys that do not change what it finds.

    Raises:
        UserError: another config's analysis is there, or the folder is not writable.
    """
    first = Path(config.runs[0])
    if config.out is None and not first.is_dir():
        raise UserError(f"out is required where '{first}' is not a run directory; add out=DIR")
    path = first / "analysis" / what if config.out is None else Path(config.out)
    values = {"analysis": what, **to_dict(config)}
    path, _ = open_run(path, values, overwrite=config.overwrite, may_differ=may_differ)
    run = RunDirectory(path)
    if (path / "results.json").exists():
        run.log(f"'{path}' is already finished; overwrite=true starts afresh")
        return None
    return run


def finish(run: RunDirectory, evaluation: Evaluation, table: Table) -> None:
    """Write results.json and print the table."""
    file = write_results(run.path, evaluation)
    Console().print(table)
    run.log(f"results: '{file}'")
