"""What the benchmarks of this folder share: common options, the machine's description, and the file of results."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run import environment, processor

FOLDER = Path(__file__).parent
GPU_PRESET = "gpu"


# Options


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def make_preset_parser(
    description: str | None, presets: Collection[str] = ("cpu", GPU_PRESET)
) -> argparse.ArgumentParser:
    """The parser of a script that has presets, with ``--preset``."""
    words = make_parser(description)
    words.add_argument("--preset", choices=presets, default="cpu")
    return words


def parse_preset(
    words: argparse.ArgumentParser, arguments: Sequence[str] | None, *, script: str, least: Mapping[str, float]
) -> argparse.Namespace:
    """Options of a script that has presets; adds ``--seed`` and ``--out``, checks, fills in where results go.

    Args:
        words: from `make_preset_parser`, with the script's own options.
        arguments: what was typed; None: as `sys.argv` has it.
        script: name without folder and ending.
        least: of `check_least`.

    Raises:
        SystemExit: the GPU preset without a GPU, in one line; options that cannot be.
    """
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path)
    options = words.parse_args(arguments)
    if options.preset == GPU_PRESET and not torch.cuda.is_available():
        words.exit(2, f"--preset gpu: torch {torch.__version__} finds no GPU; use --preset cpu\n")
    check_least(words, options, least)
    options.out = options.out or FOLDER / "results" / f"{script}_{options.preset}.json"
    return options


def add_threads(words: argparse.ArgumentParser) -> None:
    """``--threads``: two where there are as many cores."""
    words.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="on a CPU")


def check_least(words: argparse.ArgumentParser, options: argparse.Namespace, least: Mapping[str, float]) -> None:
    """Check numbers that were given.

    Args:
        words: what complains.
        options: parsed; None: not given.
        least: name -> smallest number allowed.

    Raises:
        SystemExit: one is too small.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            words.error(f"--{name.replace('_', '-')} {value}: give {smallest} or more")


def choose_cases(
    words: argparse.ArgumentParser, options: argparse.Namespace, cases: Mapping[str, Collection[str]]
) -> list[str]:
    """The cases that were asked for; all of the preset where none was.

    Args:
        words: what complains.
        options: with ``preset`` and ``cases``.
        cases: preset -> names.

    Raises:
        SystemExit: the preset does not have them.
    """
    own = cases[options.preset]
    strangers = [case for case in options.cases or [] if case not in own]
    if strangers:
        words.error(f"--cases {' '.join(strangers)}: preset {options.preset} has {', '.join(own)}")
    return options.cases or list(own)


def add_sizes(words: argparse.ArgumentParser) -> None:
    """``--sizes``: pixels of large and small views."""
    words.add_argument("--sizes", nargs=2, type=int, metavar=("LARGE", "SMALL"))


def check_sizes(words: argparse.ArgumentParser, sizes: Sequence[int] | None) -> None:
    """Check that a ResNet can take such views.

    Raises:
        SystemExit: it cannot.
    """
    if sizes and min(sizes) < 32:
        words.error(f"--sizes {sizes[0]} {sizes[1]}: give 32 or more")


def check_images(words: argparse.ArgumentParser, images: Path | None) -> None:
    """Check a folder of photos, if one was given.

    Raises:
        SystemExit: there is none.
    """
    if images is not None and not images.is_dir():
        words.error(f"--images {images}: no such folder")


# Results


def load() -> float:
    """How many processes the machine ran in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, str | int | None]:
    """Name of the processor and number of cores."""
    return {"processor": processor(), "cores": os.cpu_count()}


def machine_of_preset(preset: str) -> dict[str, str | int | None]:
    """The same after the GPU's name, which is None where the preset does not use one."""
    return {"gpu": torch.cuda.get_device_name() if preset == GPU_PRESET else None, **machine()}


def write_record(
    out: Path, script: str, arguments: Sequence[str] | None, found: Mapping[str, object], packages: Sequence[str] = ()
) -> None:
    """Write results with date, command and versions as JSON, and say where.

    Args:
        out: file; its folder is made.
        script: name without folder and ending.
        arguments: what was typed; None: as `sys.argv` has it.
        found: settings and results.
        packages: whose versions matter besides those of `environment`.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    document = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{script}.py", *typed]),
        **found,
        "environment": {**environment(), **{name: importlib.metadata.version(name) for name in packages}},
    }
    make_folder(out.parent)
    write_text(out, json.dumps(document, indent=2) + "\n")
    print(f"written: {out}")
