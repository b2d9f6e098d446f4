"""The steps of a chain on this machine: started as their turn comes, waited for, stopped where one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polyscene.runtime.errors import UserError

from .chain_config import Chain, Step
from .chain_finished import finished_file
from .chain_record import ChainRecord, dependants, write_chain_record
from .cluster.cluster_config import ClusterConfig
from .cluster.job_record import JobRecord
from .cluster.listing import format_duration
from .cluster.local_process import interrupt
from .cluster.run_overview import RunOverview, describe_run

Submit = Callable[[ClusterConfig, Sequence[Sequence[str]]], Sequence[JobRecord]]
_STOP_SECONDS = 120.0


def run_locally(
    chain: Chain,
    record: ChainRecord,
    submit: Submit,
    say: Callable[[str], None],
    *,
    show: Callable[[Mapping[str, RunOverview]], None] = lambda running: None,
    poll_seconds: float = 0.5,
) -> bool:
    """Run the steps that are not completed, ``chain.parallel`` at a time; returns whether all of them are in the end.

    A step that fails stops none that runs, but those that come after it are cancelled.

    Args:
        chain: the chain.
        record: its record; steps whose state is ``waiting`` are run. Kept up to date in ``chain.out``.
        submit: starts a command line on a cluster in the background.
        say: gets a line for every start and end.
        show: gets step -> row of those that run, at every look at them.
        poll_seconds: between two looks.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the running steps have saved and stopped.
    """
    waiting = [step for step in chain.steps if record.steps[step.name].state == "waiting"]
    running: dict[str, Step] = {}
    started: dict[str, float] = {}
    try:
        while waiting or running:
            for step in _ready(waiting, record)[: chain.parallel - len(running)]:
                waiting.remove(step)
                if _start(step, chain, record, submit, say):
                    running[step.name], started[step.name] = step, time.monotonic()
            overviews = {name: describe_run(step.command.run) for name, step in running.items()}
            for name, overview in overviews.items():
                if not overview.live:
                    step = running[name]
                    del running[name]
                    if overview.state == "completed":
                        seconds = format_duration(time.monotonic() - started[name])
                        _judge(step, finished_file(step.command) is not None, seconds, record, say)
                    else:
                        _fail(step, overview.error or overview.state, record, say)
                    write_chain_record(chain.out, record)
            waiting = [step for step in waiting if record.steps[step.name].state == "waiting"]
            show({name: overview for name, overview in overviews.items() if overview.live})
            if running:
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        _stop(running.values(), chain, record, say)
        raise
    return all(step.state == "completed" for step in record.steps.values())


def cancel_dependants(name: str, why: str, record: ChainRecord) -> list[str]:
    """Mark the waiting steps that come after a failed one; returns their names."""
    names = dependants({n: step.after for n, step in record.steps.items()}, name)
    names = [n for n in names if record.steps[n].state == "waiting"]
    for other in names:
        record.steps[other].state = "cancelled"
        record.steps[other].message = f"'{name}' {why}"
    return names


def _ready(waiting: Sequence[Step], record: ChainRecord) -> list[Step]:
    return [step for step in waiting if all(record.steps[name].state == "completed" for name in step.after)]


def _start(step: Step, chain: Chain, record: ChainRecord, submit: Submit, say: Callable[[str], None]) -> bool:
    entry = record.steps[step.name]
    left = _left_running(step)
    if left is not None:
        entry.state, entry.job_id, entry.message = "running", left, ""
        write_chain_record(chain.out, record)
        say(f"{step.name}: is running already, as process {left}")
        return True
    try:
        (job,) = submit(step.cluster, [step.command.words])
    except UserError as error:
        _fail(step, str(error), record, say)
        write_chain_record(chain.out, record)
        return False
    if job.executor == "debug":  # it has run already, in this process
        _judge(step, finished_file(step.command) is not None, "", record, say)
        write_chain_record(chain.out, record)
        return False
    entry.state, entry.job_id, entry.message = "running", job.job_id, ""
    write_chain_record(chain.out, record)
    say(f"{step.name}: started; polyscene jobs --follow {step.command.run}")
    return True


def _left_running(step: Step) -> str | None:
    """The process that an earlier chain, which was killed, has left to do this step; None if there is none."""
    overview = describe_run(step.command.run)
    job = overview.record
    same = job is not None and job.executor == "local" and tuple(job.command) == step.command.words
    return job.job_id if same and overview.state == "running" else None


def _judge(step: Step, good: bool, seconds: str, record: ChainRecord, say: Callable[[str], None]) -> None:
    """A step that ended without an error is completed if what it is for is there."""
    if good:
        record.steps[step.name].state = "completed"
        say(f"{step.name}: completed{f' in {seconds}' if seconds else ''}")
    else:
        _fail(step, f"its process ended without an error, but '{step.command.output}' is not finished", record, say)


def _fail(step: Step, why: str, record: ChainRecord, say: Callable[[str], None]) -> None:
    entry = record.steps[step.name]
    entry.state, entry.message = "failed", why
    say(f"{step.name}: failed: {why}")
    names = cancel_dependants(step.name, f"failed: {why}", record)
    if names:
        say(f"cancelled, because '{step.name}' failed: {', '.join(names)}")


def _stop(steps: Sequence[Step], chain: Chain, record: ChainRecord, say: Callable[[str], None]) -> None:
    """Let the running steps save, and note where they are."""
    steps = list(steps)
    for step in steps:
        job_id = record.steps[step.name].job_id
        if job_id.isdigit():
            interrupt(int(job_id))
    if steps:
        say(f"stopping: {', '.join(step.name for step in steps)}")
    limit = time.monotonic() + _STOP_SECONDS
    while any(describe_run(Path(record.steps[s.name].run)).live for s in steps) and time.monotonic() < limit:
        time.sleep(0.2)
    for step in steps:
        record.steps[step.name].state = "waiting"
        record.steps[step.name].message = "stopped by Ctrl-C"
    write_chain_record(chain.out, record)
