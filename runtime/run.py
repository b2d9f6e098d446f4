"""The run directory: config.yaml, log.txt, metrics.jsonl, TensorBoard, pictures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from . import job_variables
from .config import config_hash, differences, relevant
from .errors import UserError
from .files import make_folder, write_text
from .run_lock import hold_run

# What a run writes, and overwrite=true removes.
_OWN_NAMES = (
    "config.yaml",
    "log.txt",
    "metrics.jsonl",
    "results.json",
    "checkpoints",
    "backbone.safetensors",
    "model.safetensors",
    "moments.safetensors",
    "pictures",
    "tensorboard",
    "unreadable_images.txt",
    "image_index.npz",
    "linear_head.safetensors",
    "linear_head_random.safetensors",
    "results",
    "results_random",
    "scores",
)
_CLEARED = ".cleared_by"  # the cluster's job that last removed an earlier run


class RunDirectory:
    """Everything one run leaves behind, in one folder.

    Processes other than the main one get a silent instance (``main=False``) that writes nothing.

    Args:
        path: the folder, as opened by :func:`open_run`.
        main: whether this process writes.
        console: where messages are shown.
        tensorboard: also write scalars for TensorBoard.
    """

    def __init__(self, path: Path, *, main: bool = True, console: Console | None = None, tensorboard: bool = False):
        self.path = path
        self.main = main
        self.console = console or Console(stderr=True, highlight=False)
        self._tensorboard_wanted = tensorboard and main
        self._writer: Any = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the training states."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures; exists after the first call."""
        folder = self.path / "pictures"
        if self.main:
            folder.mkdir(exist_ok=True)
        return folder

    def log(self, message: str, style: str | None = None) -> None:
        """Show a line and append it, with the time, to log.txt."""
        if self.main:
            self.console.print(message, style=style, markup=False, soft_wrap=True)
            self.note(message)

    def note(self, message: str) -> None:
        """Append a line, with the time, to log.txt without showing it."""
        if not self.main:
            return
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def warn(self, message: str) -> None:
        """Show and log a warning."""
        self.log(f"warning: {message}", style="yellow")

    def metrics(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Append one JSON object to metrics.jsonl, and its numbers to TensorBoard."""
        if not self.main:
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard_wanted:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step, max_queue=100)
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def rewind_metrics(self, step: int) -> None:
        """Drop lines of metrics.jsonl written after ``step``: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not self.main or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the half line of a killed process
        write_text(path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def open_run(
    out: str | Path, config: Mapping[str, Any], *, overwrite: bool = False, may_differ: Sequence[str] = ()
) -> tuple[Path, bool]:
    """Prepare a run directory for a config; to be called by the main process only.

    A folder with the same config is continued, one with another config refused. The folder is held, see
    :func:`.run_lock.hold_run`: no other process can open it meanwhile.

    Args:
        out: the folder.
        config: nested plain values of the resolved config.
        overwrite: remove what an earlier run left there first.
        may_differ: keys or sections that do not change what the run computes.

    Returns:
        The folder, and whether an earlier run is being continued.

    Raises:
        UserError: not writable; in use; not a run directory; another config (naming the keys that differ).
    """
    path = Path(out)
    make_folder(path)
    hold_run(path)
    config_file = path / "config.yaml"
    if overwrite:
        _clear_once(path)
    if not config_file.exists():
        strangers = sorted(p.name for p in path.iterdir())
        if any(name in ("checkpoints", "metrics.jsonl", "backbone.safetensors") for name in strangers):
            raise UserError(f"'{path}' has results but no config.yaml; choose another out=DIR or overwrite=true")
        write_text(config_file, _header() + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return path, False
    changed = differences(read_run_config(path), config, ignore=("out", "overwrite", *may_differ))
    if changed:
        named = "; ".join([*changed[:5], *(["..."] if len(changed) > 5 else [])])
        raise UserError(
            f"'{path}' holds a run with another config ({named}); "
            "choose another out=DIR, or overwrite=true to start afresh"
        )
    write_text(config_file, _header() + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return path, True


def read_run_config(path: Path) -> dict[str, Any]:
    """The nested values of a run's config.yaml.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path / 'config.yaml'}': {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"'{path / 'config.yaml'}' is damaged; start afresh with overwrite=true")
    return values


def run_hash(config: Mapping[str, Any], ignore: Sequence[str]) -> str:
    """Hash of the config keys that decide what a run computes; ``ignore`` holds keys or section names that do not."""
    return config_hash(relevant(config, ("out", "overwrite", *ignore)))


def environment() -> dict[str, str]:
    """Versions that explain a number: Python, packages, and the git commit of the source if there is one."""
    versions = {"python": platform.python_version()}
    for name in ("polyscene", "torch", "torchvision", "timm", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    here = Path(__file__).resolve().parent
    try:
        # A copy of the source says where it comes from: git would name the commit of whatever it was copied into.
        versions["commit"] = (here.parent / "COMMIT").read_text(encoding="utf-8").strip()
        return versions
    except OSError:
        pass
    try:
        command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        versions["commit"] = result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        versions["commit"] = "unknown"
    return versions


def processor() -> str:
    """The processor's name, for the results of benchmarks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _header() -> str:
    return "".join(f"# {name}: {version}\n" for name, version in environment().items())


def _clear_once(path: Path) -> None:
    """Remove an earlier run, but not what an earlier attempt of this job of a cluster did."""
    job = os.environ.get(job_variables.JOB)
    marker = path / _CLEARED
    if job and marker.exists() and marker.read_text(encoding="utf-8") == job:
        return
    _clear(path)
    if job:
        write_text(marker, job)


def _clear(path: Path) -> None:
    """Remove what a run writes, and nothing else that may lie in the folder."""
    for name in _OWN_NAMES:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
