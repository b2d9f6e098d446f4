"""Keys of a cluster file, and the checks between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyscene.runtime.config import find_config, load_config, option
from polyscene.runtime.errors import UserError

from ..limits import check_at_least

# sbatch's units, in binary megabytes.
_MEMORY = re.compile(r"([0-9]+)\s*([KMGT]?)B?", re.IGNORECASE)
_MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}

# sbatch options that a cluster file says with keys of its own, or that the job depends on.
_RESERVED = {
    "account": "account",
    "array": "array_parallelism",
    "chdir": None,
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_task",
    "dependency": None,
    "error": None,
    "gpus-per-node": "gpus_per_node",
    "job-name": "name",
    "mem": "memory",
    "no-requeue": "max_requeues",
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "open-mode": None,
    "output": None,
    "partition": "partition",
    "qos": "qos",
    "requeue": "max_requeues",
    "signal": "signal_seconds",
    "time": "time",
}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where and with what a run is started: ``polyscene submit CLUSTER.yaml``."""

    executor: Literal["slurm", "local", "debug"] = option(
        "slurm", help="slurm: sbatch; local: processes of this machine, in the background; debug: this process"
    )
    name: str | None = option(None, help="of the job; null: command and run directory")
    nodes: int = option(1, help="machines")
    gpus_per_node: int = option(0, help="GPUs of every machine, one process each; 0: CPUs only")
    tasks_per_node: int | None = option(None, help="processes on every machine; null: one for each GPU, or one")
    cpus_per_task: int = option(1, help="CPU cores of every process; data.workers needs some")
    memory: str | None = option(None, help="of every machine, such as 64G; null: the partition's default")
    time: str = option("1h", help='limit: 24h, "H:MM:SS" or D-HH:MM:SS; the run goes on in another job after it')
    partition: str | None = option(None, help="of the machines; null: the default one")
    account: str | None = option(None, help="that is charged; null: the user's default")
    qos: str | None = option(None, help="quality of service; null: the default")
    constraint: str | None = option(None, help="features that the machines must have, such as a100|h100")
    signal_seconds: int | None = option(
        None, help="seconds before the time limit at which the run saves and queues again; null: 120, less if short"
    )
    max_requeues: int = option(3, help="starts after a crash, or after a stop that brought no progress; 0: none")
    array_parallelism: int | None = option(None, help="jobs of a sweep that run at the same time; null: no limit")
    snapshot: bool = option(True, help="run the code as it is at submission: a copy in the run directory")
    setup: tuple[str, ...] = option((), help="shell lines before the run: [module load cuda, ...]")
    environment: dict | None = option(None, help="variables of the processes: {NCCL_SOCKET_IFNAME: ib0}")
    sbatch: dict | None = option(None, help="any other option of sbatch: {exclude: node7, mail-type: FAIL}")
    srun: tuple[str, ...] = option((), help="further options of srun: [--gpu-bind=single:1, ...]")

    @property
    def tasks(self) -> int:
        """Processes on every machine."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def processes(self) -> int:
        """Processes of one run."""
        return self.nodes * self.tasks

    @property
    def time_seconds(self) -> int:
        """The time limit."""
        return parse_time(self.time)

    @property
    def memory_megabytes(self) -> int | None:
        """Memory of every machine, or None for the partition's default."""
        return None if self.memory is None else parse_memory(self.memory)

    @property
    def warning_seconds(self) -> int:
        """Seconds before the time limit at which the run is told to save.

        At most a third of the limit: a signal right at the start would leave a short job without any progress.
        """
        if self.signal_seconds is not None:
            return self.signal_seconds
        return max(1, min(120, self.time_seconds // 3))


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and check a cluster file, or a shipped one such as ``cluster/slurm_8gpu``.

    Raises:
        UserError: no such file, an unknown key, or a value that makes no sense.
    """
    config = load_config(ClusterConfig, path, overrides)
    try:
        check_cluster(config)
    except UserError as error:
        raise UserError(f"{find_config(path)}: {error}") from error
    return config


def check_cluster(config: ClusterConfig) -> None:
    """Refuse values that are of the right type but make no sense.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    check_at_least(
        [
            ("nodes", config.nodes, 1),
            ("gpus_per_node", config.gpus_per_node, 0),
            ("tasks_per_node", config.tasks_per_node, 1),
            ("cpus_per_task", config.cpus_per_task, 1),
            ("max_requeues", config.max_requeues, 0),
            ("array_parallelism", config.array_parallelism, 1),
            ("signal_seconds", config.signal_seconds, 1),
        ]
    )
    if config.gpus_per_node and config.tasks != config.gpus_per_node:
        raise UserError(
            f"tasks_per_node={config.tasks_per_node} with gpus_per_node={config.gpus_per_node}: every GPU has one "
            "process; leave tasks_per_node out"
        )
    if config.executor != "slurm" and config.nodes > 1:
        raise UserError(f"nodes={config.nodes} with executor={config.executor}: that is one machine; use nodes=1")
    if config.executor == "debug" and config.tasks > 1:
        raise UserError(f"executor=debug is one process, not {config.tasks}; use executor=local")
    if config.memory_megabytes == 0:
        raise UserError(f"memory={config.memory} is nothing; write for example 64G, or null for the default")
    limit = config.time_seconds
    if limit < 1:
        raise UserError(f"time={config.time} is no time at all; write for example 24h")
    if config.warning_seconds >= limit:
        raise UserError(
            f"signal_seconds={config.signal_seconds} is not less than time={config.time}; the run would be stopped "
            "when it starts"
        )
    _check_words(config)


def parse_time(text: str) -> int:
    """A time limit as seconds: ``H:MM:SS``, ``D-HH``, ``D-HH:MM``, ``D-HH:MM:SS``, or with units: ``1d 12h 30m``.

    Raises:
        UserError: something else; also a plain number: minutes to sbatch, but YAML makes seconds of 24:00:00.
    """
    if re.fullmatch(r"[0-9]+", text.strip()):
        raise UserError(
            f"time={text} is a number without a unit (YAML reads 24:00:00 without quotes as a number, too); write "
            '"24:00:00" in quotes, or 24h, or 90m'
        )
    units = re.fullmatch(r"(?:([0-9]+)d)? ?(?:([0-9]+)h)? ?(?:([0-9]+)m)? ?(?:([0-9]+)s)?", text.strip())
    clock = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+):([0-9]+):([0-9]+)", text.strip())
    short = re.fullmatch(r"([0-9]+)-([0-9]+)(?::([0-9]+))?", text.strip())
    match = units or clock or short
    if not text.strip() or match is None:
        raise UserError(f'time={text} is no time; write "H:MM:SS", D-HH:MM:SS, or 24h, for example time=24h')
    days, hours, minutes, seconds = (int(n or 0) for n in (*match.groups(), None)[:4])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def format_time(seconds: int) -> str:
    """Seconds in sbatch's notation ``D-HH:MM:SS``."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02d}:{minute:02d}:{second:02d}"


def parse_memory(text: str) -> int:
    """sbatch's notation of memory as binary megabytes.

    Raises:
        UserError: something else.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise UserError(f"memory={text} is no amount of memory; write for example 64G")
    return round(int(match[1]) * _MEGABYTES[match[2].upper()])


def _check_words(config: ClusterConfig) -> None:
    for name, value in (config.environment or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or isinstance(value, (dict, list)) or value is None:
            raise UserError(f"environment.{name}={value}: a variable has a name of letters and digits, and a text")
    for name, value in (config.sbatch or {}).items():
        _check_option(str(name), value)


def _check_option(name: str, value: Any) -> None:
    plain = name.lstrip("-").replace("_", "-")
    if plain in _RESERVED:
        key = _RESERVED[plain]
        remedy = f"use the key {key}" if key else "polyscene sets it"
        raise UserError(f"sbatch.{name}: not as an option of sbatch; {remedy}")
    if isinstance(value, (dict, list)) or value is None or value is False:
        raise UserError(f"sbatch.{name}={value}: write a text or a number, or true for an option without a value")
