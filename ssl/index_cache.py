"""Keep the list of a run's images in the run directory, so that a restart does not search millions of files again."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from polyscene.runtime.errors import UserError

from .scanning import PathTable

INDEX_NAME = "image_index.npz"

_FORMAT = "polyscene-image-index-1"
_SETTLED_NS = 2_000_000_000  # the coarsest modification times that file systems keep


def load_index(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The saved list of images, if it is still true.

    It is not if it was made for another ``key``, or if a folder it was read from has another modification time: files
    were added, removed or renamed there. A file that was replaced under its own name changes nothing. A damaged cache
    is ignored.

    Args:
        folder: the run directory.
        key: everything the list depends on besides the folders' content.

    Returns:
        ``paths`` (PathTable), ``labels`` (int64 array or None), ``class_names`` (tuple or None); or None.
    """
    try:
        with np.load(folder / INDEX_NAME, allow_pickle=False) as saved:
            header = json.loads(saved["header"].tobytes())
            if header["format"] != _FORMAT or header["key"] != _as_json(key):
                return None
            folders = PathTable(saved["folders"].tobytes(), saved["folder_ends"])
            times = saved["folder_times"]
            root = key["root"]
            if any(_modified(os.path.join(root, folders[i])) != times[i] for i in range(len(folders))):
                return None
            names = header["class_names"]
            return {
                "paths": PathTable(saved["paths"].tobytes(), saved["path_ends"]),
                "labels": saved["labels"] if header["labelled"] else None,
                "class_names": None if names is None else tuple(names),
            }
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def save_index(
    folder: Path,
    key: dict[str, Any],
    folders: dict[bytes, int],
    now: int,
    paths: PathTable,
    labels: np.ndarray | None,
    class_names: tuple[str, ...] | None,
) -> None:
    """Write what `load_index` reads; several processes may do so at the same time.

    Nothing is written while a folder is so young that its modification time might not show the next change.

    Args:
        folder: the run directory.
        key: everything the list depends on besides the folders' content.
        folders: folders the list was read from, relative to ``key["root"]``, and their modification times, ns.
        now: when the reading began, ns since the epoch.
        paths: the images.
        labels: (N,) int64, or None.
        class_names: names of the labels, or None.

    Raises:
        UserError: the file cannot be written.
    """
    if max(folders.values(), default=0) > now - _SETTLED_NS:
        return
    table = PathTable.from_names(list(folders))
    header = {"format": _FORMAT, "key": _as_json(key), "labelled": labels is not None, "class_names": class_names}
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "folders": np.frombuffer(table.blob, dtype=np.uint8),
        "folder_ends": table.ends,
        "folder_times": np.fromiter(folders.values(), dtype=np.int64, count=len(folders)),
        "paths": np.frombuffer(paths.blob, dtype=np.uint8),
        "path_ends": paths.ends,
        "labels": np.zeros(0, dtype=np.int64) if labels is None else labels,
    }
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{INDEX_NAME}.", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)
        os.replace(temporary, folder / INDEX_NAME)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write '{folder / INDEX_NAME}': {error.strerror}; free some space or choose another run directory"
        ) from error


def _modified(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _as_json(key: dict[str, Any]) -> Any:
    return json.loads(json.dumps(key))
