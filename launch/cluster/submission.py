"""Command lines -> jobs: checked, frozen with their code and settings, and handed to SLURM or to this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from polyscene.runtime.config import to_dict, to_yaml
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run_lock import live_owner

from .cluster_config import ClusterConfig, format_time
from .command_line import CommandLine, check_inputs, check_processes, parse_command
from .job_end import marker
from .job_record import CODE_FOLDER, JOBS_FOLDER, STATE_FILE, JobRecord, now, read_record, write_record
from .local_job import LocalPlan, write_plan
from .local_process import process_alive
from .queue_state import QueueUnavailable, query_queue
from .snapshot import take_snapshot
from .sweep import common_folder
from .worker import Job

_GRACE = 0.7  # share of the time before the limit that a step may take after the signal; the rest is for the end


def submit_commands(
    cluster: ClusterConfig,
    commands: Sequence[Sequence[str]],
    *,
    after: Sequence[str] = (),
    name: str | None = None,
    array_parallelism: int | None = None,
) -> list[JobRecord]:
    """Check commands and start them as one job, or as one job array where there are several.

    Everything is checked before anything is queued; what a job reads may still be missing if it comes ``after`` others.

    Args:
        cluster: where and with what; checked.
        commands: word lists such as ``["pretrain", "configs/x.yaml", "out=runs/a"]``, each with a folder of its own.
        after: SLURM job ids that must be completed first; if one fails, the job is removed from the queue.
        name: of the job; None: the cluster file's, or command and run directory.
        array_parallelism: runs of the array at the same time; None: as the cluster file says.

    Returns:
        A record for each command, in their order; it also lies in the run directory.

    Raises:
        UserError: a wrong command, missing data, a run directory in use, or a refusal by SLURM. Nothing is queued then.
        RunFailed: the command failed (executor debug, which runs it here and now).
    """
    lines = [parse_command(words) for words in commands]
    if not lines:
        raise UserError("no command is named")
    if after and cluster.executor != "slurm":
        raise UserError(f"executor={cluster.executor} knows no dependencies; wait for the earlier job, or use slurm")
    _check_folders(lines)
    for line in lines:
        check_processes(line, cluster.processes, cluster.gpus_per_node > 0)
        if not after:
            check_inputs(line)
        check_free(line.run)
    require_submitit()
    if cluster.executor == "slurm":
        require_slurm()
    for line in lines:
        make_folder(line.run)
        (line.run / STATE_FILE).unlink(missing_ok=True)  # of an earlier job
    group = common_folder([line.run.absolute() for line in lines])
    logs = group / JOBS_FOLDER
    logs.mkdir(parents=True, exist_ok=True)
    code = take_snapshot(group / CODE_FOLDER) if cluster.snapshot else None
    token = uuid.uuid4().hex
    grace = _GRACE * cluster.warning_seconds
    jobs = [
        Job(
            run=str(line.run.absolute()),
            logs=str(logs),
            words=frozen_words(line, logs / f"{token[:8]}_{index}.yaml"),
            token=token,
            code=None if code is None else str(code),
            gpus=cluster.gpus_per_node > 0,
            grace=grace,
        )
        for index, line in enumerate(lines)
    ]
    title = name or cluster.name or _title(lines, group)
    parallel = array_parallelism or cluster.array_parallelism or len(jobs)
    if cluster.executor == "slurm":
        ids = _submit_slurm(cluster, jobs, logs, code, title, parallel, after)
    elif cluster.executor == "local":
        ids = _start_local(cluster, jobs, logs, code, parallel)
    else:
        ids = [f"debug-{os.getpid()}"] * len(jobs)
    records = [
        JobRecord(
            run=line.run,
            job_id=job_id,
            executor=cluster.executor,
            name=title,
            command=list(line.words),
            submitted=now(),
            cluster=to_dict(cluster),
            logs=str(logs),
            max_requeues=cluster.max_requeues,
        )
        for line, job_id in zip(lines, ids)
    ]
    for record in records:
        write_record(record.run, record)
    if cluster.executor == "debug":
        _run_here(jobs)
    return records


def check_free(run: Path) -> None:
    """Refuse a run directory that a live process writes, or that a waiting job will write.

    Raises:
        UserError: naming the job or process.
    """
    if not run.is_dir():
        return
    record = read_record(run)
    if record is not None and record.executor == "slurm" and is_queued(record):
        raise UserError(
            f"'{run}' belongs to job {record.job_id}, which waits or runs; end it with scancel {record.job_id}, or "
            "choose another out=DIR"
        )
    if record is not None and record.executor == "local" and is_running(record):
        raise UserError(
            f"'{run}' belongs to process {record.job_id}, which waits or runs; end it with "
            f"polyscene jobs --cancel {run}, or choose another out=DIR"
        )
    owner = live_owner(run)
    if owner is not None:
        raise UserError(f"'{run}' is in use by {owner}; wait for it, stop it, or choose another out=DIR")


def is_queued(record: JobRecord) -> bool:
    """Whether SLURM knows a job as waiting or running; a controller that does not answer knows nothing."""
    try:
        found = query_queue([record.job_id]).get(record.job_id)
    except QueueUnavailable:
        return False
    return found is not None and not found.ended


def is_running(record: JobRecord) -> bool:
    """Whether the process of a local job is alive."""
    submitted = datetime.fromisoformat(record.submitted).timestamp()
    return process_alive(int(record.job_id), submitted)


def require_submitit() -> None:
    """Refuse an installation without submitit, which machines that only train need not have.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("submitting needs the package submitit; pip install submitit")


def require_slurm() -> None:
    """Refuse a machine without SLURM's programs.

    Raises:
        UserError: naming the program.
    """
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise UserError(
                f"executor=slurm, but '{program}' is not found on this machine; log in to the cluster, or use "
                "cluster/local"
            )


def frozen_words(line: CommandLine, file: Path) -> tuple[str, ...]:
    """The command with its settings as they are now, written to ``file``: editing a config does not change the job."""
    if line.config is None:
        return line.words
    write_text(file, f"# polyscene {shlex.join(line.words)}\n{to_yaml(line.config)}")
    return (line.name, str(file))


def batch_parameters(
    cluster: ClusterConfig, runs_file: Path, code: Path | None, title: str, parallel: int, after: Sequence[str]
) -> dict[str, Any]:
    """The job as submitit's parameters of sbatch and srun.

    Args:
        cluster: where and with what.
        runs_file: JSON list of the run directories, for `job_end`.
        code: the snapshot, or None.
        title: name of the job.
        parallel: runs of an array at the same time.
        after: job ids that must be completed first.
    """
    python = shlex.quote(sys.executable)
    setup = [
        # Signals are for the processes of the run. Bash stays, to see how they end.
        "trap : TERM USR2 INT",
        *cluster.setup,
        *(f"export {key}={shlex.quote(str(value))}" for key, value in (cluster.environment or {}).items()),
        *python_path(code),
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cluster.cpus_per_task}}}",
        f'echo "{marker("${SLURM_RESTART_COUNT:-0}")}" >&2',
    ]
    extra = {str(key).lstrip("-"): value for key, value in (cluster.sbatch or {}).items()}
    extra |= {"requeue": True, "time": format_time(cluster.time_seconds)}
    if after:
        extra |= {"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"}
    if cluster.gpus_per_node:
        extra["gpus-per-node"] = cluster.gpus_per_node
    if cluster.memory_megabytes is not None:
        extra["mem"] = f"{cluster.memory_megabytes}M"
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(cluster, key) is not None:
            extra[key] = getattr(cluster, key)
    return {
        "job_name": title,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks,
        "cpus_per_task": cluster.cpus_per_task,
        "signal_delay_s": cluster.warning_seconds,
        "array_parallelism": parallel,
        "setup": setup,
        # srun may give its processes fewer cores than the job has unless it is told.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_task}", *cluster.srun],
        "teardown": [f"exec {python} -m polyscene.launch.cluster.job_end {shlex.quote(str(runs_file))} $?"],
        "additional_parameters": extra,
        "wckey": None,  # submitit's own would be refused where keys are checked
    }


def python_path(code: Path | None) -> list[str]:
    """The shell line that makes Python import the snapshot."""
    return [] if code is None else [f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"']


def _submit_slurm(
    cluster: ClusterConfig,
    jobs: Sequence[Job],
    logs: Path,
    code: Path | None,
    title: str,
    parallel: int,
    after: Sequence[str],
) -> list[str]:
    import submitit
    from submitit.core.utils import FailedJobError

    runs_file = logs / f"{jobs[0].token[:8]}_runs.json"
    write_text(runs_file, json.dumps([job.run for job in jobs]))
    executor = submitit.SlurmExecutor(logs)
    executor.update_parameters(**batch_parameters(cluster, runs_file, code, title, parallel, after))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit also prints what it raises
            submitted = executor.submit_array(list(jobs))
    except FailedJobError as error:
        raise UserError(explain_refusal(str(error), cluster)) from error
    return [job.job_id for job in submitted]


def explain_refusal(said: str, cluster: ClusterConfig) -> str:
    """What sbatch printed as one line that names the key."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = re.sub(r"^sbatch: (error|fatal): ", "", lines[-1]) if lines else "no reason given"
    text = " ".join(lines).lower()
    if "invalid partition" in text:
        return f"partition={cluster.partition} does not exist on this cluster; `sinfo` lists those that do"
    if "unable to contact slurm controller" in text or ("controller" in text and "timed out" in text):
        return f"SLURM's controller does not answer ({reason}); try again later, or ask who runs the cluster"
    hints = {
        "account": "account",
        "qos": "qos",
        "constraint": "constraint",
        "feature": "constraint",
        "memory": "memory",
        "time limit": "time",
        "node count": "nodes",
        "node configuration": "nodes, gpus_per_node, cpus_per_task or memory",
        "dependency": "after",
    }
    key = next((key for word, key in hints.items() if word in text), None)
    return f"sbatch refused the job: {reason}" + (f"; see {key} in the cluster file" if key else "")


def _start_local(
    cluster: ClusterConfig, jobs: Sequence[Job], logs: Path, code: Path | None, parallel: int
) -> list[str]:
    from submitit.core.utils import DelayedSubmission, JobPaths

    ids = []
    for index, job in enumerate(jobs):
        plan_file = logs / f"{job.token[:8]}_{index}_plan.json"
        write_plan(
            plan_file,
            LocalPlan(
                run=job.run,
                logs=str(logs),
                tasks=cluster.tasks,
                seconds=cluster.time_seconds,
                warning=cluster.warning_seconds,
                max_requeues=cluster.max_requeues,
                slots=str(logs) if parallel < len(jobs) else None,
                parallel=parallel,
                token=job.token[:8],
            ),
        )
        lines = [
            *cluster.setup,
            *python_path(code),
            f"exec {shlex.quote(sys.executable)} -m polyscene.launch.cluster.local_job {shlex.quote(str(plan_file))}",
        ]
        variables = {
            "OMP_NUM_THREADS": str(cluster.cpus_per_task),
            **os.environ,
            **{str(k): str(v) for k, v in (cluster.environment or {}).items()},
        }
        with open(logs / f"{job.token[:8]}_{index}_controller.log", "w") as log:
            process = subprocess.Popen(
                ["bash", "-c", "\n".join(lines)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the job outlives the terminal
            )
        job_id = str(process.pid)
        # The processes wait for this file.
        target = JobPaths(logs, job_id=job_id).submitted_pickle
        DelayedSubmission(job).dump(target.with_suffix(".part"))
        target.with_suffix(".part").rename(target)
        ids.append(job_id)
    return ids


def _run_here(jobs: Sequence[Job]) -> None:
    from polyscene.launch.cli import app
    from polyscene.runtime.run_lock import run_locks

    for job in jobs:
        with run_locks():
            code = app(args=list(job.words), prog_name="polyscene", standalone_mode=False)
        if code:
            raise RunFailed(f"{' '.join(job.words)} ended with status {code}")


def _check_folders(lines: Sequence[CommandLine]) -> None:
    seen: set[Path] = set()
    for line in lines:
        place = line.run.absolute()
        if place in seen:
            raise UserError(f"two commands write to '{line.run}'; give each its own out=DIR")
        seen.add(place)


def _title(lines: Sequence[CommandLine], group: Path) -> str:
    return f"{lines[0].name.replace(' ', '-')}-{group.name}"
