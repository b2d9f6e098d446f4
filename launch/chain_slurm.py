"""The steps of a chain on SLURM: all queued at once, each to start when those before it have succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from polyscene.runtime.errors import UserError

from .chain_config import Chain
from .chain_record import ChainRecord, write_chain_record
from .cluster.cancel import cancel_slurm
from .cluster.cluster_config import ClusterConfig
from .cluster.job_record import JobRecord
from .cluster.run_overview import RunOverview, describe_runs


class Submit(Protocol):
    """Queue command lines on a cluster, to start after other jobs have succeeded."""

    def __call__(
        self,
        cluster: ClusterConfig,
        commands: Sequence[Sequence[str]],
        *,
        after: Sequence[str] = (),
        name: str | None = None,
    ) -> Sequence[JobRecord]:
        """Returns a record for each command."""


def queue_steps(chain: Chain, record: ChainRecord, submit: Submit, say: Callable[[str], None]) -> None:
    """Queue every step that is neither completed nor queued already.

    Args:
        chain: the chain.
        record: its record; steps whose state is ``waiting`` are queued. Written to ``chain.out``.
        submit: queues a command line.
        say: gets a line for every step.

    Raises:
        UserError: a step was refused; what was queued before it has been taken back.
    """
    open_steps = [step for step in chain.steps if record.steps[step.name].state == "waiting"]
    queued: list[str] = []
    live = _live([step.command.run for step in open_steps])
    try:
        for step in open_steps:
            entry = record.steps[step.name]
            job = live.get(step.command.run)
            if job is not None:
                entry.job_id = job.record.job_id
                say(f"{step.name}: is {job.state} already, as job {entry.job_id}")
            else:
                before = [record.steps[name].job_id for name in step.after if record.steps[name].job_id]
                name = f"{chain.name}-{step.name}"
                try:
                    (submitted,) = submit(step.cluster, [step.command.words], after=before, name=name)
                except UserError as error:
                    raise UserError(f"steps.{step.name}: {error}; nothing stays queued") from error
                entry.job_id = submitted.job_id
                queued.append(submitted.job_id)
                after = f" after {', '.join(before)}" if before else ""
                say(f"{step.name}: job {entry.job_id}{after}; '{step.command.run}'")
            entry.state, entry.message = "submitted", ""
    except BaseException:
        cancel_slurm(queued)
        for step in open_steps:
            if record.steps[step.name].job_id in queued:
                record.steps[step.name].state, record.steps[step.name].job_id = "waiting", ""
        raise
    finally:
        write_chain_record(chain.out, record)


def _live(runs: Sequence[Path]) -> dict[Path, RunOverview]:
    """The runs whose jobs wait or run in SLURM."""
    with_job = [run for run in runs if run.is_dir()]
    overviews, _ = describe_runs(with_job)
    return {o.path: o for o in overviews if o.live and o.record is not None and o.record.executor == "slurm"}
