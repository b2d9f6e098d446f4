"""``polyscene chain``: commands that build on each other, from one file, continued by the same command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.text import Text

from polyscene.runtime.files import make_folder

from .chain_checks import check_chain
from .chain_config import Chain, load_chain
from .chain_finished import finished_steps, outdated_steps
from .chain_local import run_locally
from .chain_record import ChainRecord, StepRecord
from .chain_slurm import queue_steps
from .cluster.cluster_config import ClusterConfig
from .cluster.listing import Column, format_duration, print_rows
from .cluster.run_overview import RunOverview

_COLUMNS = (Column("step"), Column("state"), Column("after"), Column("where"), Column("command", long=True))


def chain(file: str, words: Sequence[str], *, dry_run: bool = False) -> int:
    """Start or continue a chain; returns the exit code.

    On this machine the command ends with the chain; on SLURM, once all steps are queued.

    Args:
        file: YAML file, or a shipped one such as ``chains/demo``.
        words: ``key=value`` words that change it.
        dry_run: only check everything and show what would be done.

    Raises:
        UserError: anything wrong with the file, a command, its data or the cluster; nothing has been started then.
    """
    plan = load_chain(file, words)
    finished = finished_steps(plan)
    check_chain(plan, finished)
    console = Console(stderr=True, highlight=False)

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    for name in outdated_steps(plan, finished):
        say(
            f"warning: '{name}' is finished, but a step before it is not: its results are of something older; "
            "overwrite=true in its command measures again",
            style="yellow",
        )
    if dry_run:
        _show(plan, finished)
        return 0
    make_folder(plan.out)
    record = new_record(plan, finished)
    done = [name for name in finished if record.steps[name].state == "completed"]
    if done:
        say(f"finished already: {', '.join(done)}")
    if len(done) == len(plan.steps):
        return 0
    if all(step.cluster.executor != "slurm" for step in plan.steps if step.name not in finished):
        return _run(plan, record, console, say)
    from .cluster.submission import submit_commands

    queue_steps(plan, record, submit_commands, say)
    say(f"progress: polyscene jobs {plan.out}; the same command continues the chain if a step fails")
    return 0


def new_record(plan: Chain, finished: Sequence[str]) -> ChainRecord:
    """The record of a chain that is about to start or to go on."""
    steps = {
        step.name: StepRecord(
            command=list(step.command.words),
            after=list(step.after),
            run=str(step.command.run),
            state="completed" if step.name in finished else "waiting",
        )
        for step in plan.steps
    }
    return ChainRecord(chain=plan.file, words=list(plan.words), steps=steps)


def _run(plan: Chain, record: ChainRecord, console: Console, say: Callable[[str], None]) -> int:
    from .cluster.submission import submit_commands

    with console.status("starting") if console.is_terminal else nullcontext() as status:

        def show(running: Mapping[str, RunOverview]) -> None:
            if status is not None:
                status.update(Text("; ".join(_progress(name, overview) for name, overview in running.items())))

        completed = run_locally(plan, record, submit_commands, say, show=show)
    if completed:
        say("all steps are completed")
        return 0
    say("not all steps are completed; the same command continues with those that are not")
    return 1


def _progress(name: str, overview: RunOverview) -> str:
    progress = overview.progress
    parts = [name]
    if progress.percent is not None:
        parts.append(f"step {progress.step or 0}/{progress.total}, {progress.percent:.0f}%")
    if progress.seconds_left is not None:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    return ", ".join(parts)


def _show(plan: Chain, finished: Sequence[str]) -> None:
    rows = [
        [
            step.name,
            "completed" if step.name in finished else "waiting",
            ", ".join(step.after),
            _place(step.cluster),
            " ".join(step.command.words),
        ]
        for step in plan.steps
    ]
    print_rows(Console(highlight=False), _COLUMNS, rows)


def _place(cluster: ClusterConfig) -> str:
    size = f"{cluster.nodes} x {cluster.tasks} {'GPU' if cluster.gpus_per_node else 'CPU'}"
    return f"{cluster.executor}, {size}"
