"""A command line that is to run elsewhere: parsed and checked here, without torch, before anything is queued."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyscene.runtime.config import build, find_config, load_config, parse_words
from polyscene.runtime.errors import UserError

from ..cam_config import CamConfig
from ..multitask_config import MultitaskConfig
from ..predict_config import PredictConfig
from ..pretrain_config import PretrainConfig
from ..probe_config import ProbeConfig, ProbeDataConfig
from ..propagate_config import PropagateConfig
from ..retrieve_config import RetrieveConfig
from ..scenes_config import ScenesConfig

# Commands of the form COMMAND CONFIG [key=value ...], and where their checks of values are.
_CONFIG_COMMANDS: dict[str, tuple[type, str]] = {
    "pretrain": (PretrainConfig, "pretrain_config"),
    "multitask": (MultitaskConfig, "multitask_checks"),
    "probe": (ProbeConfig, "probe_config"),
    "retrieve": (RetrieveConfig, "retrieve_task"),
    "propagate": (PropagateConfig, "propagate_config"),
    "cam": (CamConfig, "cam_config"),
}

# Keys that name something to be read. A key that a schema lacks is passed over.
_INPUT_KEYS = (
    "weights",
    "compare",
    "head",
    "compare_head",
    "images",
    "data.root",
    "data.list",
    "data.images",
    "data.labels",
    "data.saliency",
    "data.frames",
    "data.masks",
    "online_knn.held_out",
    "model.base",
    "model.rcm.init_images",
    "evaluate.single",
)
# Commands that train with several processes.
_PARALLEL = ("pretrain", "multitask")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command that was understood.

    Attributes:
        words: as typed, without ``polyscene``.
        name: of the command, such as ``pretrain`` or ``analyse gradients``.
        run: where the job's files go: the run directory; for a command that writes a file or a data set, a folder
            ``NAME-job`` beside it.
        output: what it writes: the run directory, a folder, or a file.
        config: resolved settings of a command with a CONFIG, else None.
        inputs: what it reads: ``(key or description, path)``.
        device: ``auto``, ``cpu`` or ``cuda``, as far as the command has that setting.
    """

    words: tuple[str, ...]
    name: str
    run: Path
    output: Path
    config: Any = None
    inputs: tuple[tuple[str, Path], ...] = ()
    device: str = "auto"


def parse_command(words: Sequence[str]) -> CommandLine:
    """Understand a command line, and refuse what is wrong with it whatever lies on the disk.

    Args:
        words: such as ``["pretrain", "pretrain/coco_knn_800ep", "out=runs/a"]``.

    Raises:
        UserError: no such command, one that leaves nothing to wait for, or settings that the command would refuse.
    """
    words = [str(word) for word in words]
    if not words:
        raise UserError("no command is named; write for example: polyscene submit cluster/slurm_8gpu pretrain CONFIG")
    name, *rest = words
    if name in _CONFIG_COMMANDS:
        return _with_config(name, rest)
    others: dict[str, Callable[[list[str]], CommandLine]] = {
        "scenes": _scenes,
        "export": _export,
        "predict": _predict,
        "analyse": _analyse,
        "report": _report,
        "tasks": _tasks,
    }
    if name not in others:
        known = ", ".join(sorted([*_CONFIG_COMMANDS, *others]))
        raise UserError(f"'{name}' cannot be submitted; commands that can: {known}")
    return others[name](rest)


def missing_inputs(command: CommandLine) -> list[tuple[str, Path]]:
    """The ``(key, path)`` of everything that the command reads and that does not exist (yet)."""
    return [(key, path) for key, path in command.inputs if not path.expanduser().exists()]


def check_processes(command: CommandLine, processes: int, gpus: bool) -> None:
    """Refuse a cluster that does not suit the command.

    Args:
        command: the command.
        processes: of the run.
        gpus: whether they have GPUs.

    Raises:
        UserError: naming the command or key and the remedy.
    """
    if command.device == "cuda" and not gpus:
        raise UserError(
            "device=cuda, but the cluster file has gpus_per_node=0; use device=auto or another cluster file"
        )
    if processes == 1:
        return
    if command.name not in _PARALLEL:
        raise UserError(
            f"{command.name} runs as one process, the cluster file starts {processes}; "
            "use one such as cluster/slurm_1gpu"
        )
    accumulate = command.config.optim.accumulate if command.name == "pretrain" else 1
    batch = command.config.batch_size
    if batch % (processes * accumulate):
        times = f" x optim.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"batch_size={batch} is not a multiple of the cluster file's {processes} processes{times}; change one"
        )


def schema_of(name: str) -> type | None:
    """The schema of a command of the form COMMAND CONFIG [key=value ...], None for another."""
    return _CONFIG_COMMANDS[name][0] if name in _CONFIG_COMMANDS else None


def check_inputs(command: CommandLine) -> None:
    """Refuse a command whose data or weights are not there.

    Raises:
        UserError: naming the key and the path; or the data set's layout is another.
    """
    for key, path in missing_inputs(command):
        named = f"{key}={path}" if key != command.name.split()[0] else f"'{path}'"
        raise UserError(f"{named} does not exist; correct the path (relative ones start at the current folder)")
    if command.name == "pretrain" and command.config.data.list is None:
        from polyscene.ssl.layouts import locate_splits

        data = command.config.data
        locate_splits(data.kind, str(Path(data.root).absolute()), data.splits)


def job_folder(out: Path) -> Path:
    """Where the job's files go for a command whose output is a file, or a folder that holds nothing else."""
    return out.with_name(f"{out.stem if out.suffix in ('.html', '.htm', '.pth', '.safetensors') else out.name}-job")


def _with_config(name: str, rest: Sequence[str]) -> CommandLine:
    schema, checks = _CONFIG_COMMANDS[name]
    if not rest or "=" in rest[0]:
        raise UserError(f"{name} needs a config file before its key=value words, such as {name}/quickstart")
    flags = [word for word in rest if word.startswith("-")]
    if flags:
        raise UserError(f"'{flags[0]}' is no setting of {name}; settings are key=value words")
    settings = load_config(schema, rest[0], rest[1:])
    importlib.import_module(f"..{checks}", __package__).check_values(settings)
    return CommandLine(
        words=(name, *rest),
        name=name,
        run=Path(settings.out),
        output=Path(settings.out),
        config=settings,
        inputs=tuple(_inputs(settings)),
        device=settings.device,
    )


def _inputs(settings: Any) -> Iterable[tuple[str, Path]]:
    data = getattr(settings, "data", None)
    keys = _INPUT_KEYS
    if isinstance(data, ProbeDataConfig):
        keys += ("data.train", "data.test")  # elsewhere these are names of lists
        keys = tuple(key for key in keys if not (data.download and key == "data.root"))
    for key in keys:
        value = _value(settings, key)
        for path in [value] if isinstance(value, str) else value or ():
            if not (path == "random" and key in ("weights", "compare")):
                yield key, Path(path)


def _value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part, None)
    return settings


def _scenes(rest: Sequence[str]) -> CommandLine:
    if not rest or "=" in rest[0]:
        raise UserError("scenes needs the folder to write: scenes OUT [count=600 ...]")
    build(ScenesConfig, parse_words(rest[1:]), source="scenes")
    out = Path(rest[0])
    return CommandLine(words=("scenes", *rest), name="scenes", run=job_folder(out), output=out, device="cpu")


def _export(rest: Sequence[str]) -> CommandLine:
    valued = ("--format", "--arch", "--task")
    places = [word for i, word in enumerate(rest) if not word.startswith("-") and not (i and rest[i - 1] in valued)]
    if len(places) != 2:
        raise UserError(f"export needs RUN_OR_FILE and OUT, not {len(places)} names")
    source, out = map(Path, places)
    return CommandLine(
        words=("export", *rest),
        name="export",
        run=job_folder(out),
        output=out,
        inputs=(("export", source),),
        device="cpu",
    )


def _predict(rest: Sequence[str]) -> CommandLine:
    if not rest:
        raise UserError("predict needs RUN and images")
    model = Path(rest[0])
    settings, places = _split(rest[1:])
    if not places:
        raise UserError("no images named; give files, a folder, or a text file that lists images")
    config = build(PredictConfig, parse_words(settings), source="predict")
    beside = model.parent if model.suffix else model
    out = Path(config.out) if config.out else beside / "predictions"
    return CommandLine(
        words=("predict", *rest),
        name="predict",
        run=job_folder(out),
        output=out,
        inputs=(("predict", model), *(("predict", Path(place)) for place in places)),
        device=config.device,
    )


def _analyse(rest: Sequence[str]) -> CommandLine:
    from ..analyse import parse_arguments
    from ..analyse_config import check_values

    if not rest:
        raise UserError("analyse needs what to analyse, such as analyse gradients RUN")
    config = parse_arguments(rest[0], rest[1:])
    check_values(config)
    first = Path(config.runs[0])
    if config.out is None and first.suffix:
        raise UserError(f"out is required where '{first}' is not a run directory; add out=DIR")
    # A run may also be the name of a shipped config, which is no path.
    runs = [("analyse", Path(run)) for run in config.runs if not _is_config(run)]
    out = first / "analysis" / rest[0] if config.out is None else Path(config.out)
    return CommandLine(
        words=("analyse", *rest),
        name=f"analyse {rest[0]}",
        run=out,
        output=out,
        inputs=tuple(runs),
        device=config.device,
    )


def _report(rest: Sequence[str]) -> CommandLine:
    settings, places = _split(rest)
    words = dict(word.split("=", 1) for word in settings)
    unknown = words.keys() - {"out", "title"}
    if unknown:
        raise UserError(f"'{unknown.pop()}=': report knows the words out=FILE.html and title=TEXT, and run directories")
    if not places:
        raise UserError("no run is named; give at least one run directory, or a directory that holds runs")
    if "out" not in words and len(places) > 1:
        raise UserError("out=FILE.html is required for a report of several places")
    out = Path(words.get("out", Path(places[0]) / "report.html"))
    return CommandLine(
        words=("report", *rest),
        name="report",
        run=job_folder(out),
        output=out,
        inputs=tuple(("report", Path(place)) for place in places),
        device="cpu",
    )


def _tasks(rest: Sequence[str]) -> CommandLine:
    if rest[:1] == ["merge"] and len(rest) >= 4:
        out, sources = rest[1], rest[2:]
    elif rest[:1] == ["remove"] and len(rest) == 4:
        out, sources = rest[3], rest[1:2]
    else:
        raise UserError("of tasks, these can be submitted: tasks merge OUT RUN RUN ..., and tasks remove RUN TASK OUT")
    return CommandLine(
        words=("tasks", *rest),
        name="tasks",
        run=job_folder(Path(out)),
        output=Path(out),
        inputs=tuple(("tasks", Path(source)) for source in sources),
        device="cpu",
    )


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings, and places; something that exists under a name with an equals sign is a place."""
    settings = [word for word in words if "=" in word and not Path(word).expanduser().exists()]
    return settings, [word for word in words if word not in settings]


def _is_config(name: str) -> bool:
    try:
        find_config(name)
    except UserError:
        return False
    return True
