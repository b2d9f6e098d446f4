"""``polyscene jobs``: what runs, how far it is and how it ended; following and cancelling; results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polyscene.runtime.errors import UserError

from .chain_record import ChainRecord, find_chain_records
from .chain_story import blame
from .cluster.cancel import cancel_run
from .cluster.follow import follow
from .cluster.listing import Column, format_duration, print_rows
from .cluster.results_table import results_tables
from .cluster.run_overview import RunOverview, describe_runs, find_all_runs

DEFAULT_FOLDER = "runs"
_COLUMNS = (
    Column("run"),
    Column("job"),
    Column("state"),
    Column("nodes"),
    Column("elapsed", right=True),
    Column("epoch", right=True),
    Column("step", right=True),
    Column("done", right=True),
    Column("images/s", right=True),
    Column("left", right=True),
    Column("last error", long=True),
)


def jobs(folder: Path | None, *, table: bool = False) -> int:
    """Print a row for every run in a folder; returns the exit code.

    Args:
        folder: where runs are looked for, at any depth; None: ``runs``.
        table: print results and the keys in which the runs differ, instead of progress.

    Raises:
        UserError: no such folder, or it holds no run.
    """
    folder = Path(DEFAULT_FOLDER) if folder is None else folder
    runs = find_all_runs(folder)
    if not runs:
        raise UserError(f"'{folder}' holds no run: neither a job.json nor a config.yaml with a log")
    overviews, warning = describe_runs(runs)
    names = [str(run) for run in runs]
    console = Console(highlight=False)
    if table:
        for found in results_tables(overviews, names):
            print_rows(console, found.columns, found.rows, found.command)
    else:
        told, others = tell_chains(find_chain_records(folder), overviews)
        rows = zip(names, overviews)
        print_rows(console, _COLUMNS, [progress_row(name, run, told.get(run.path, "")) for name, run in rows])
        for line in others:
            console.print(line, markup=False, soft_wrap=True)
    if warning is not None:
        errors = Console(stderr=True, highlight=False)
        errors.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    return 0


def follow_run(path: Path) -> int:
    """Show the log of a run until its job ends or Ctrl-C; returns 0 unless the run ended without being completed.

    Raises:
        UserError: no such run.
    """
    _check_run(path)
    console = Console(highlight=False)
    try:
        last = follow(path, lambda line: console.print(line, markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        console.print(f"the run goes on; polyscene jobs --cancel {path} ends it", markup=False, soft_wrap=True)
        return 0
    error = f": {last.error}" if last.error else ""
    console.print(f"-- '{path}' {last.state}{error}", markup=False, soft_wrap=True)
    return 0 if last.state == "completed" else 1


def cancel(path: Path) -> int:
    """End the job of a run and say so; returns the exit code.

    Raises:
        UserError: no such run, or no job that could be ended.
    """
    _check_run(path)
    print(cancel_run(path))
    return 0


def progress_row(name: str, run: RunOverview, told: str = "") -> list[str]:
    """The cells of one run, in the order of the columns of ``polyscene jobs``; ``told`` stands for its last error."""
    progress = run.progress
    percent = 100.0 if run.state == "completed" and progress.total else progress.percent
    running = run.state.rstrip("?") == "running"
    return [
        name,
        run.record.job_id if run.record is not None else "",
        f"{run.state} ({run.reason})" if run.reason else run.state,
        run.nodes,
        format_duration(run.seconds),
        _of(progress.epoch, progress.epochs, digits=1),
        _of(progress.step, progress.total),
        "" if percent is None else f"{percent:.0f}%",
        "" if progress.images_per_second is None else f"{progress.images_per_second:.0f}",
        format_duration(progress.seconds_left) if running else "",
        told or run.error,
    ]


def tell_chains(records: Sequence[ChainRecord], overviews: Sequence[RunOverview]) -> tuple[dict[Path, str], list[str]]:
    """Why steps of chains were cancelled: a text for those that are rows, and a line for each of the others."""
    by_run = {overview.path.resolve(): overview for overview in overviews}
    told, others = {}, []
    for record in records:
        for name, cause in blame(record, by_run).items():
            row = by_run.get(Path(record.steps[name].run).resolve())
            if row is not None and row.record is not None and row.record.job_id == record.steps[name].job_id:
                told[row.path] = f"not started: {cause}"
            else:
                others.append(f"not started: {record.chain}, {name}: {cause}")
    return told, others


def _of(done: float | None, total: float | None, digits: int = 0) -> str:
    if done is None and total is None:
        return ""
    shown = "-" if done is None else f"{done:.{digits}f}"
    return shown if total is None else f"{shown}/{total:g}"


def _check_run(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"'{path}' does not exist; name a run directory, polyscene jobs lists them")
    runs = find_all_runs(path)
    if path not in runs:
        held = f"it holds {len(runs)}, such as '{runs[0]}'" if runs else "it holds none either"
        raise UserError(f"'{path}' is not a run directory; {held}")
