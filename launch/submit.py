"""``polyscene submit``: any command, as a job of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyscene.runtime.errors import UserError

from .cluster.cluster_config import ClusterConfig, load_cluster
from .cluster.job_record import JobRecord
from .cluster.submission import submit_commands
from .cluster.sweep import common_folder, expand_sweep


def submit(cluster: str, words: Sequence[str], *, sweep: bool = False) -> int:
    """Check a command line, queue it, and print its job, its run directory and how to follow it.

    Args:
        cluster: YAML file, or shipped name such as ``cluster/slurm_8gpu``.
        words: the command line without ``polyscene``.
        sweep: whether lists of values mean one run for each combination.

    Returns:
        0.

    Raises:
        UserError: a wrong cluster file or command, missing data, a run directory in use, or a refusal by SLURM.
    """
    config = load_cluster(cluster)
    if not words:
        raise UserError(f"no command is named; write for example: polyscene submit {cluster} pretrain CONFIG")
    commands = expand_sweep(words) if sweep else [list(words)]
    for line in describe_submission(submit_commands(config, commands), config):
        print(line)
    return 0


def describe_submission(records: Sequence[JobRecord], cluster: ClusterConfig) -> list[str]:
    """What was queued, and the commands to follow it."""
    first = records[0]
    if first.executor == "debug":
        return [f"run directory: {first.run}"] if len(records) == 1 else [f"{len(records)} runs are done"]
    size = f"{cluster.nodes} x {cluster.tasks} processes" if cluster.processes > 1 else "1 process"
    place = f"{size}, {cluster.gpus_per_node or 'no'} GPUs a node"
    if len(records) == 1:
        return [
            f"job {first.job_id}: {first.name} ({place})",
            f"run directory: {first.run}",
            f"state and progress: polyscene jobs {first.run}",
            f"what it prints:     polyscene jobs --follow {first.run}",
            f"end it:             polyscene jobs --cancel {first.run}",
        ]
    folder = _relative(common_folder([record.run.absolute() for record in records]))
    number = first.job_id.partition("_")[0]
    title = f"job array {number}" if first.executor == "slurm" else "jobs"
    return [
        f"{title}: {len(records)} runs, {first.name} ({place} each)",
        *(f"  {record.job_id}: {record.run}" for record in records),
        f"state and progress: polyscene jobs {folder}",
        f"results:            polyscene jobs --table {folder}",
    ]


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if here in path.parents else path
