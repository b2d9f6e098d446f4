"""The package's source as it is now, copied for a job that runs later."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

from polyscene.runtime.run import environment

_PACKAGES = ("runtime", "ssl", "downstream", "launch", "configs")


def take_snapshot(folder: Path) -> Path:
    """Copy the package to ``folder/polyscene``, in place of an earlier copy; ``folder`` goes on PYTHONPATH.

    The copy has an ``__init__.py``: as a regular package it is found before an installed one and before the redirection
    of an editable installation, which are namespace packages.

    Returns:
        The folder, as an absolute path.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    package = fresh / "polyscene"
    for name in _PACKAGES:
        source = importlib.import_module(f"polyscene.{name}").__path__[0]
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    (package / "__init__.py").write_text('"""PolyScene as it was when the job was submitted."""\n')
    (package / "COMMIT").write_text(environment()["commit"] + "\n")
    old = folder.with_name(f".{folder.name}-{os.getpid()}-old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def check_snapshot(folder: Path) -> None:
    """Make sure that this process runs the copy in ``folder``.

    Raises:
        RuntimeError: it runs another one: a setting of the cluster replaced PYTHONPATH.
    """
    used = Path(sys.modules[__package__ or __name__].__path__[0]).resolve()
    if folder.resolve() not in used.parents:
        raise RuntimeError(
            f"the job runs the code in '{used}', not its copy in '{folder}'; do not replace PYTHONPATH in setup or "
            "environment, or submit with snapshot: false"
        )
