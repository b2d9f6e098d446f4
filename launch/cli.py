"""The ``polyscene`` command line: parses words, shows help and errors. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polyscene.runtime.config import describe, load_config, to_yaml
from polyscene.runtime.errors import UserError

from .cam_config import CamConfig
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

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or a shipped name: pretrain/quickstart")]
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="override keys of the config")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved config and exit")]


def _keys_help(schema: type) -> str:
    """The epilog that lists a schema's keys; ``\\b`` keeps click from re-wrapping it."""
    rows = list(describe(schema))
    width = max(len(row[0]) for row in rows)
    lines = [f"{key:<{width}}  {help}  [{kind}; {default}]" for key, kind, default, help in rows]
    return "\b\nConfig keys (KEY=VALUE)  [type; default]:\n" + "\n".join(f"  {line}" for line in lines)


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


@app.command(epilog=_keys_help(PretrainConfig))
def check(config: ConfigPath, words: Words = None) -> None:
    """Verify a pretraining config and its data before burning GPU hours."""
    settings = load_config(PretrainConfig, config, words or [])
    check_values(settings)
    from .check import check as run

    raise typer.Exit(run(settings))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="run directory or any known checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="file to write")],
    format: Annotated[
        str, typer.Option("--format", help="safetensors | torchvision | timm | moco | detectron2")
    ] = "safetensors",
    arch: Annotated[str | None, typer.Option("--arch", help="timm name, where the file does not tell")] = None,
) -> None:
    """Write backbone weights in the format another library reads."""
    from .export import export as run

    print(run(source, out, format, arch))


@app.command(epilog=_keys_help(ProbeConfig))
def probe(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Classify with frozen features (VOC SVM, linear, kNN), beside a randomly initialised backbone."""
    settings = load_config(ProbeConfig, config, words or [])
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .probe import probe as run

    raise typer.Exit(run(settings))


@app.command(epilog=_keys_help(RetrieveConfig))
def retrieve(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Segment images by retrieving the nearest labelled regions in frozen feature space."""
    settings = load_config(RetrieveConfig, config, words or [])
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .retrieve import retrieve as run

    raise typer.Exit(run(settings))


@app.command(epilog=_keys_help(PropagateConfig))
def propagate(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Carry the masks of a video's first frame through the video with frozen features (J and F)."""
    settings = load_config(PropagateConfig, config, words or [])
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .propagate import propagate as run

    raise typer.Exit(run(settings))


@app.command(epilog=_keys_help(CamConfig))
def cam(config: ConfigPath, words: Words = None, print_config: PrintConfig = False) -> None:
    """Draw where a frozen backbone looks: class activation maps, two backbones side by side."""
    settings = load_config(CamConfig, config, words or [])
    if print_config:
        print(to_yaml(settings), end="")
        return
    from .cam import cam as run

    raise typer.Exit(run(settings))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run directories, and out=FILE.html")],
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from .report import report as run

    raise typer.Exit(run(runs))


def main() -> None:
    """Run the command line; a :class:`UserError` becomes one line and its exit code."""
    try:
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
