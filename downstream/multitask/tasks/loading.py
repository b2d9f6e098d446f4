"""Tasks by name, or from a user's file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from polyscene.runtime.errors import UserError

from .spec import TaskSpec

BUILT_IN = ("segmentation", "parts", "saliency", "edges", "normals", "depth")


def load_task(name: str) -> TaskSpec:
    """The task of a name or of a Python file that defines ``task() -> TaskSpec``.

    Data sets know their own variants of the built-in tasks (number of classes, tolerance of edges): ask them first.

    Args:
        name: one of `BUILT_IN`, or a path that ends in ``.py``. The file is executed.

    Raises:
        UserError: no such task; or the file is missing, fails, or defines no task.
    """
    if not name.endswith(".py"):
        if name not in BUILT_IN:
            raise UserError(f"task '{name}' does not exist; choose from {', '.join(BUILT_IN)} or give a .py file")
        return importlib.import_module(f"{__package__}.{name}").task()
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"task file '{name}' does not exist")
    module = _execute(path)
    make = getattr(module, "task", None)
    if not callable(make):
        raise UserError(f"task file '{name}' defines no function task(); see polyscene/downstream/multitask/tasks")
    try:
        spec = make()
    except Exception as error:
        raise UserError(f"task file '{name}': task() failed: {_one_line(error)}") from error
    if not isinstance(spec, TaskSpec):
        raise UserError(f"task file '{name}': task() returned {type(spec).__name__}, not a TaskSpec")
    if spec.name in BUILT_IN:
        raise UserError(f"task file '{name}': the name '{spec.name}' belongs to a built-in task; choose another")
    return replace(spec, source=str(path))


def _execute(path: Path) -> ModuleType:
    unique = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(f"polyscene_task_{unique}", path)
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # dataclasses of the file look their module up here
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        raise UserError(f"task file '{path}' cannot be imported: {_one_line(error)}") from error
    return module


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
