"""Which images a run trains on: COCO, OpenImages, BDD100K, ImageNet or any folder, whole, in part or by a list."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from polyscene.runtime.errors import UserError

from .index_cache import load_index, save_index
from .layouts import locate_splits
from .scanning import IMAGE_SUFFIXES, PathTable, scan_images
from .subsets import balanced_subset, long_tailed_subset, random_subset


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The images of a run, in an order that depends on their names only.

    Attributes:
        kind: `folder`, `coco`, `openimages`, `bdd100k` or `imagenet`.
        root: absolute path that ``paths`` are relative to.
        paths: file names; absolute where a list names files outside ``root``.
        labels: (N,) int64 class of every image, or None.
        class_names: name of every class, or None. In a subset a class may be left without images.
    """

    kind: str
    root: str
    paths: PathTable
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """File name of an image, relative to the root."""
        return self.paths[index]

    def path(self, index: int) -> Path:
        """Where an image is."""
        return Path(self.root, self.paths[index])

    def fingerprint(self) -> str:
        """Short hash of all names and labels: equal if two runs number the same images the same way."""
        digest = hashlib.blake2b(self.paths.blob, digest_size=8)
        digest.update(self.paths.ends.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def open_source(
    kind: str,
    root: str | os.PathLike[str],
    *,
    list_file: str | os.PathLike[str] | None = None,
    subset: int | None = None,
    long_tailed: bool = False,
    splits: Sequence[str] = ("train",),
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageSource:
    """Find the images of a data set in the layout it is published in.

    Labels serve to monitor a run. `imagenet` takes them from ``<split>/<class>/``; `folder` from the folder an image
    lies in, if there are at least two and no image lies beside them in ``root``; the other kinds have none.

    Args:
        kind: layout, see `layouts.KINDS`.
        root: the data set's folder; one level too high or too low is noticed if it is unambiguous.
        list_file: text file with one image a line, relative to ``root`` or absolute; lines starting with "#" are
            comments. The layout below ``root`` is then free.
        subset: use only this many images: at random; for `imagenet` the same number of every class.
        long_tailed: make the class sizes of the subset follow a Pareto law (`subsets.long_tailed_subset`).
        splits: parts of the data set to use together.
        seed: of the subset.
        cache_dir: folder (the run directory) that keeps the result for the next time, see `index_cache`.

    Raises:
        UserError: missing or unreadable folder, another layout, no images, missing entries of a list, impossible
            subset, unwritable cache.
    """
    if long_tailed and subset is None:
        raise UserError("a long-tailed subset needs its size; set subset (thesis: 118000)")
    root = _existing_folder(root)
    key = {
        "kind": kind,
        "root": root,
        "list": None if list_file is None else _file_identity(list_file),
        "subset": subset,
        "long_tailed": long_tailed,
        "splits": list(splits),
        "seed": seed,
    }
    saved = None if cache_dir is None else load_index(Path(cache_dir), key)
    if saved is not None:
        return ImageSource(kind, root, **saved)
    now = time.time_ns()
    names, folders, labels, class_names = _collect(kind, root, list_file, splits)
    if subset is not None:
        chosen = _choose(kind, labels, len(names), subset, long_tailed, seed)
        names = [names[i] for i in chosen]
        labels = None if labels is None else labels[chosen]
    source = ImageSource(kind, root, PathTable.from_names(names), labels, class_names)
    if cache_dir is not None:
        save_index(Path(cache_dir), key, folders, now, source.paths, labels, class_names)
    return source


_Collected = tuple[list[bytes], dict[bytes, int], "np.ndarray | None", "tuple[str, ...] | None"]


def _collect(kind: str, root: str, list_file: str | os.PathLike[str] | None, splits: Sequence[str]) -> _Collected:
    """Sorted names relative to ``root``, folders read, labels, class names."""
    if list_file is not None:
        names, folders = _read_list(list_file, root)
        return names, folders, *(_folder_labels(names) if kind in ("folder", "imagenet") else (None, None))
    base, found = locate_splits(kind, root, splits)
    # Names stay relative to the root the user gave, whatever level it is.
    starts = [_relative(os.path.join(base, folder), root) for group in found.values() for folder in group]
    scan = scan_images(root, starts)
    if not scan.names:
        where = ", ".join(f"'{os.path.join(root, start).rstrip('/')}'" for start in starts)
        raise UserError(
            f"no images in {where}: {scan.other_files} other files; image names end in {', '.join(IMAGE_SUFFIXES)}"
        )
    labels, class_names = None, None
    if kind == "imagenet":
        labels, class_names = _class_labels(scan.names, [os.fsencode(start) for start in starts], root)
    elif kind == "folder":
        labels, class_names = _folder_labels(scan.names)
    return scan.names, scan.folders, labels, class_names


def _choose(kind: str, labels: np.ndarray | None, count: int, subset: int, long_tailed: bool, seed: int) -> np.ndarray:
    if long_tailed:
        if labels is None:
            raise UserError(f"a long-tailed subset needs classes, and these images of kind '{kind}' have none")
        return long_tailed_subset(labels, subset, seed)
    if kind == "imagenet" and labels is not None:
        return balanced_subset(labels, subset, seed)
    return random_subset(count, subset, seed)


def _class_labels(names: list[bytes], starts: list[bytes], root: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of ``<start>/<class>/...``."""
    prefixes = tuple(start + b"/" if start else b"" for start in starts)
    lengths = {prefix: len(prefix) for prefix in prefixes}
    classes = []
    for name in names:
        start = next(length for prefix, length in lengths.items() if name.startswith(prefix))
        first, separator, _ = name[start:].partition(b"/")
        if not separator:
            raise UserError(
                f"'{os.path.join(root, os.fsdecode(name))}' lies beside the class folders; imagenet needs "
                "<split>/<class>/*.JPEG; move it, or use kind 'folder'"
            )
        classes.append(first)
    return _number(classes)


def _folder_labels(names: list[bytes]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels by the folder an image lies in; none if an image lies in no folder, or all in the same."""
    parents = [os.path.dirname(name) for name in names]
    distinct = set(parents)
    if len(distinct) < 2 or b"" in distinct:
        return None, None
    # "images/bedroom", "images/kitchen" are called bedroom and kitchen.
    depth = 0
    for parts in zip(*(folder.split(b"/")[:-1] for folder in distinct)):
        if len(set(parts)) > 1:
            break
        depth += 1
    called = {folder: b"/".join(folder.split(b"/")[depth:]) for folder in distinct}
    return _number([called[parent] for parent in parents])


def _number(classes: list[bytes]) -> tuple[np.ndarray, tuple[str, ...]]:
    distinct = sorted(set(classes))
    numbers = {name: number for number, name in enumerate(distinct)}
    labels = np.fromiter((numbers[name] for name in classes), dtype=np.int64, count=len(classes))
    return labels, tuple(os.fsdecode(name) for name in distinct)


def _read_list(list_file: str | os.PathLike[str], root: str) -> tuple[list[bytes], dict[bytes, int]]:
    """Sorted names of the images a file lists, and the folders they lie in.

    The folders are read, not the files looked up: one request for many files matters on a network disk.
    """
    try:
        lines = Path(list_file).expanduser().read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise UserError(f"cannot read image list '{os.fspath(list_file)}': {error.strerror}") from error
    base = os.fsencode(root)
    wanted = [line.strip() for line in lines]
    wanted = [line for line in wanted if line and not line.startswith(b"#")]
    names = [os.path.normpath(os.path.join(base, line)) for line in wanted]
    contents: dict[bytes, frozenset[bytes]] = {}
    folders: dict[bytes, int] = {}
    prefix = base.rstrip(b"/") + b"/"
    for folder in {os.path.dirname(name) for name in names}:
        try:
            folders[folder] = os.stat(folder).st_mtime_ns
            with os.scandir(folder) as entries:
                contents[folder] = frozenset(entry.name for entry in entries if not entry.is_dir())
        except OSError:
            contents[folder] = frozenset()
    missing = [
        line for line, name in zip(wanted, names) if os.path.basename(name) not in contents[os.path.dirname(name)]
    ]
    if missing:
        raise UserError(
            f"image list '{os.fspath(list_file)}': {len(missing)} of {len(wanted)} images do not exist, the first is "
            f"'{os.fsdecode(missing[0])}' (relative to '{root}'); correct the list or the root"
        )
    names.sort()
    twice = next((a for a, b in pairwise(names) if a == b), None)
    if twice is not None or not names:
        fault = "names no images" if twice is None else f"names '{os.fsdecode(twice)}' more than once"
        raise UserError(f"image list '{os.fspath(list_file)}' {fault}; correct the list")
    return [name.removeprefix(prefix) for name in names], folders


def _existing_folder(root: str | os.PathLike[str]) -> str:
    path = os.path.abspath(os.path.expanduser(root))
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise UserError(f"'{path}' is a file; the images are looked for in a folder (unpack archives first)")
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    raise UserError(f"folder '{path}' does not exist ('{above}' does); correct the root of the images")


def _file_identity(path: str | os.PathLike[str]) -> list[Any]:
    absolute = os.path.abspath(os.path.expanduser(path))
    try:
        status = os.stat(absolute)
    except OSError as error:
        raise UserError(f"cannot read image list '{absolute}': {error.strerror}; correct its path") from error
    return [absolute, status.st_size, status.st_mtime_ns]


def _relative(path: str, root: str) -> str:
    relative = os.path.relpath(path, root)
    return "" if relative == "." else relative
