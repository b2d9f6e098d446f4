"""The ``polyscene`` command line: parses words, shows help and errors. Heavy imports wait until a command runs."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polyscene.runtime.config import config_values, describe, load_config, to_yaml
from polyscene.runtime.errors import UserError
from polyscene.runtime.run_lock import run_locks

from .analyse_config import AffinityConfig, FeaturesConfig, GradientsConfig, ParametersConfig, ResourcesConfig
from .cam_config import CamConfig
from .chain_config import ChainConfig
from .cluster.cluster_config import ClusterConfig
from .full_gpu import full_gpu_in_one_line
from .multitask_checks import check_values as check_multitask_values
from .multitask_config import MultitaskConfig
from .predict_config import PredictConfig
from .pretrain_config import PretrainConfig, check_values
from .probe_config import ProbeConfig
from .propagate_config import PropagateConfig
from .retrieve_config import RetrieveConfig
from .scenes_config import ScenesConfig

app = typer.Typer(
    name="polyscene",
    help="Pretrain a backbone on scene images without labels, measure it frozen, transfer it to multi-task models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

tasks_app = typer.Typer(
    name="tasks",
    help="List, merge and remove the tasks of finished multi-task models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tasks_app)
analyse_app = typer.Typer(
    name="analyse",
    help="Look into multi-task models and their data: figures and tables of the RCM paper and of the thesis.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(analyse_app)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or a shipped name: pretrain/quickstart")]
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="override keys of the config")]
RunAndWords = Annotated[
    list[str], typer.Argument(metavar="RUN|KEY=VALUE", help="run of polyscene multitask, and keys of the analysis")
]
ConfigAndWords = Annotated[
    list[str], typer.Argument(metavar="CONFIG|KEY=VALUE", help="multi-task config or run, and keys of the analysis")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved config and exit")]


def _keys_help(schema: type, hidden: str = "") -> str:
    """The epilog that lists a schema's keys but a ``hidden`` one; ``\\b`` keeps click from re-wrapping it."""
    rows = [row for row in describe(schema) if row[0] != hidden]
    width = max(len(row[0]) for row in rows)
    lines = [f"{key:<{width}}  {help}  [{kind}; {default}]" for key, kind, default, help in rows]
    return "\b\nConfig keys (KEY=VALUE)  [type; default]:\n" + "\n".join(f"  {line}" for line in lines)


def _evaluate(command: str, schema: type, config: str, words: list[str] | None, print_config: bool) -> None:
    """Run (or print) an evaluation: the function of the module that has the command's name."""
    settings = load_config(schema, config, words or [])
    if print_config:
        print(to_yaml(settings), end="")
        return
    module = importlib.import_module(f".{command}", __package__)
    raise typer.Exit(getattr(module, command)(settings))


@app.command(epilog=_keys_help(ScenesConfig))
def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    words: Words = None,
) -> None:
    """Draw the built-in data set: rooms and streets with exact labels, in the official layouts."""
    from .scenes import scenes as run

    run(out, words or [])


@app.command(epilog=_keys_help(PretrainConfig))
def pretrain(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Pretrain a ResNet on unlabeled images (kNN-MoCo); the same command continues a stopped run."""
    settings = load_config(PretrainConfig, config, words or [])
    check_values(settings)
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .pretrain import pretrain as run

    raise typer.Exit(run(settings))


@app.command(epilog=_keys_help(MultitaskConfig))
def multitask(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Train dense tasks from a backbone (single-task, multi-task, adapters, RCM) and evaluate them."""
    settings = load_config(MultitaskConfig, config, words or [])
    check_multitask_values(settings)
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .multitask import multitask as run

    raise typer.Exit(run(settings))


@app.command(epilog=_keys_help(PredictConfig))
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run of polyscene multitask, or its model.safetensors")],
    words: Annotated[
        list[str], typer.Argument(metavar="IMAGES|KEY=VALUE", help="files, folders, or text files that list images")
    ],
) -> None:
    """Write coloured predictions of all tasks for your own photos, of any size."""
    from .predict import predict as predict_photos

    raise typer.Exit(predict_photos(run, words))


@tasks_app.command("list")
def list_tasks(run: Annotated[Path, typer.Argument(metavar="RUN", help="run or model.safetensors")]) -> None:
    """Show the tasks of a model and what each owns."""
    from .tasks_command import list_tasks as show

    raise typer.Exit(show(run))


@tasks_app.command("merge")
def merge_tasks(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder (or .safetensors file) to write")],
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="runs that started from the same model")],
) -> None:
    """Write one model with the tasks of several runs."""
    from .tasks_command import merge

    print(merge(out, runs))


@tasks_app.command("remove")
def remove_task(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run or model.safetensors")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="name of the task")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder (or .safetensors file) to write")],
) -> None:
    """Write a model without one of its tasks."""
    from .tasks_command import remove

    print(remove(run, task, out))


def _analyse(what: str, words: list[str]) -> None:
    from .analyse import analyse

    raise typer.Exit(analyse(what, words))


@analyse_app.command(epilog=_keys_help(GradientsConfig, hidden="runs"))
def gradients(words: RunAndWords) -> None:
    """Similarity of the tasks' gradients, by depth (RCM, figure 3)."""
    _analyse("gradients", words)


@analyse_app.command(epilog=_keys_help(FeaturesConfig, hidden="runs"))
def features(words: RunAndWords) -> None:
    """Features as colours, side by side in several models (RCM, figure 5)."""
    _analyse("features", words)


@analyse_app.command(epilog=_keys_help(ParametersConfig, hidden="runs"))
def parameters(words: RunAndWords) -> None:
    """Parameters against the number of tasks, for every kind of model (RCM, figure 4)."""
    _analyse("parameters", words)


@analyse_app.command(epilog=_keys_help(AffinityConfig, hidden="runs"))
def affinity(words: ConfigAndWords) -> None:
    """Pixel affinities that tasks share, by scale (thesis, figure 5.3)."""
    _analyse("affinity", words)


@analyse_app.command(epilog=_keys_help(ResourcesConfig, hidden="runs"))
def resources(words: ConfigAndWords) -> None:
    """Parameters, operations, memory and time of any networks, relative to the first (thesis, table 5.6)."""
    _analyse("resources", words)


@app.command(epilog=_keys_help(PretrainConfig))
def check(config: ConfigPath, words: Words = None) -> None:
    """Verify a pretraining or multi-task config and its data before burning GPU hours."""
    # Only a multi-task config names tasks.
    if {"task", "tasks"} & config_values(config, words or []).keys():
        multitask_settings = load_config(MultitaskConfig, config, words or [])
        check_multitask_values(multitask_settings)
        from .check_multitask import check_multitask

        raise typer.Exit(check_multitask(multitask_settings))
    settings = load_config(PretrainConfig, config, words or [])
    check_values(settings)
    from .check import check as run

    raise typer.Exit(run(settings))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="run directory or any known checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="file to write; with --fold: folder")],
    format: Annotated[
        str, typer.Option("--format", help="safetensors | torchvision | timm | moco | detectron2; --fold: or onnx")
    ] = "safetensors",
    arch: Annotated[str | None, typer.Option("--arch", help="timm name, where the file does not tell")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="the tasks of a multi-task run, as plain networks")] = False,
    task: Annotated[list[str] | None, typer.Option("--task", help="with --fold: this task only; repeatable")] = None,
) -> None:
    """Write backbone weights in the format another library reads, or folded single-task networks."""
    from .export import export as run
    from .export import export_folded

    if fold and arch is not None:
        raise UserError("--arch is for backbones; a multi-task run knows its own, leave it out")
    if task and not fold:
        raise UserError("--task needs --fold; a backbone has no tasks")
    print(export_folded(source, out, format, task or ()) if fold else run(source, out, format, arch))


@app.command(epilog=_keys_help(ProbeConfig))
def probe(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Classify with frozen features (VOC SVM, linear, kNN), beside a randomly initialised backbone."""
    _evaluate("probe", ProbeConfig, config, words, print_config)


@app.command(epilog=_keys_help(RetrieveConfig))
def retrieve(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Segment images by retrieving the nearest labelled regions in frozen feature space."""
    _evaluate("retrieve", RetrieveConfig, config, words, print_config)


@app.command(epilog=_keys_help(PropagateConfig))
def propagate(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Carry the masks of a video's first frame through the video with frozen features (J and F)."""
    _evaluate("propagate", PropagateConfig, config, words, print_config)


@app.command(epilog=_keys_help(CamConfig))
def cam(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Draw where a frozen backbone looks: class activation maps, two backbones side by side."""
    _evaluate("cam", CamConfig, config, words, print_config)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run directories, and out=FILE.html")],
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from .report import report as run

    raise typer.Exit(run(runs))


@app.command(
    epilog=_keys_help(ClusterConfig).replace("Config keys (KEY=VALUE)", "Keys of CLUSTER"),
    context_settings={"ignore_unknown_options": True},  # the submitted command's own
)
def submit(
    cluster: Annotated[
        str, typer.Argument(metavar="CLUSTER", help="YAML file, or a shipped name: cluster/slurm_8gpu, cluster/local")
    ],
    words: Annotated[list[str], typer.Argument(metavar="COMMAND [CONFIG] [KEY=VALUE]...", help="what is to run there")],
    sweep: Annotated[
        bool, typer.Option("--sweep", help="KEY=[A,B] means a run for each value, all in one job array")
    ] = False,
) -> None:
    """Run a command as a job of a SLURM cluster, or in the background of this machine."""
    from .submit import submit as run

    raise typer.Exit(run(cluster, words, sweep=sweep))


@app.command()
def jobs(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="where to look; default: runs")] = None,
    table: Annotated[bool, typer.Option("--table", help="results, and the keys in which the runs differ")] = False,
    follow: Annotated[Path | None, typer.Option("--follow", metavar="RUN", help="show its log until it ends")] = None,
    cancel: Annotated[Path | None, typer.Option("--cancel", metavar="RUN", help="end its job")] = None,
) -> None:
    """Show state, progress and last error of every run; works without SLURM's accounting."""
    from . import jobs as command

    if (folder is not None) + (follow is not None) + (cancel is not None) > 1 or (table and (follow or cancel)):
        raise UserError("give one of DIR (with or without --table), --follow RUN and --cancel RUN")
    if follow is not None:
        raise typer.Exit(command.follow_run(follow))
    if cancel is not None:
        raise typer.Exit(command.cancel(cancel))
    raise typer.Exit(command.jobs(folder, table=table))


@app.command(epilog=_keys_help(ChainConfig))
def chain(
    file: Annotated[str, typer.Argument(metavar="CHAIN", help="YAML file, or a shipped name: chains/demo")],
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the steps, start none")] = False,
) -> None:
    """Run commands that build on each other, here or on SLURM; the same command continues at what is not finished."""
    from .chain import chain as run

    raise typer.Exit(run(file, words or [], dry_run=dry_run))


def main() -> None:
    """Run the command line; a :class:`UserError` becomes one line and its exit code."""
    try:
        with run_locks(), full_gpu_in_one_line():
            app()
    except UserError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) left: nothing to report, and nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    """Print one line on stderr and leave; other processes of the same run stay silent."""
    if int(os.environ.get("RANK", 0)) == 0 or code != 2:
        line = " ".join(message.split())
        Console(stderr=True, highlight=False).print(f"error: {line}", markup=False, soft_wrap=True, style="red")
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
