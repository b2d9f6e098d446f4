"""NYUD-v2 for multi-task learning: 795 training and 654 test images of rooms, in its three published archives.

All have the folders ``images edge segmentation normals depth gt_sets``; they differ in file formats:

| version | image | edge | segmentation | normals | depth |
|---|---|---|---|---|---|
| astmt (ASTMT and RCM) | jpg | png / 255 | mat, `segmentation` | jpg, 2x / 255 - 1 | mat, `depth` |
| mti (MTI-Net) | jpg | npy | png | npy | npy |
| atrc (ATRC, InvPT) | png | png / 255 | png | png, 2x / 255 - 1 | npy |

Depth is in metres, 0 = no measurement. Segmentation is 1 to 40, 0 = void.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.png import read_grey, read_numbers

from ..tasks import depth, edges, normals, segmentation
from ..tasks.spec import Target, TaskSpec
from .files import as_map, read_list, read_mat, read_npy
from .records import DenseImages, TargetFiles, find_root
from .targets import classes_target, depth_target, normals_from_bytes, normals_target, share_target

PUBLISHED_COUNTS = {"train": 795, "val": 654}

CLASS_NAMES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard"),
    *("person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture"),
    "other prop",
)

FOLDERS = {"images": "images", "edges": "edge", "segmentation": "segmentation", "normals": "normals", "depth": "depth"}

VERSIONS = {
    "astmt": {"images": "jpg", "edges": "png", "segmentation": "mat", "normals": "jpg", "depth": "mat"},
    "mti": {"images": "jpg", "edges": "npy", "segmentation": "png", "normals": "npy", "depth": "npy"},
    "atrc": {"images": "png", "edges": "png", "segmentation": "png", "normals": "png", "depth": "npy"},
}
"""File extensions of each published archive."""


def tasks(void_class: bool = False, depth_protocol: str = "survey", axes: str = "nyud") -> dict[str, TaskSpec]:
    """The tasks of NYUD.

    Args:
        void_class: train and judge void as a 41st class (number 0), as the ASTMT experiments did.
        depth_protocol: ``survey`` or ``rcm``, see `depth.task`.
        axes: of the normals, see `normals.task`.
    """
    names = ("void", *CLASS_NAMES) if void_class else CLASS_NAMES
    specs = (
        segmentation.task(len(names), names, background=void_class),
        depth.task(depth_protocol),
        normals.task(axes),
        edges.task(max_distance=0.011),
    )
    return {spec.name: spec for spec in specs}


def open_nyud(
    root: str | Path, split: str, only: Sequence[str] | None = None, specs: dict[str, TaskSpec] | None = None
) -> DenseImages:
    """A split of NYUD, whichever archive it came from.

    Args:
        root: the unpacked folder, or what holds it as ``NYUD_MT``.
        split: ``train`` or ``val``; any list in ``gt_sets``.
        only: names of the tasks to read; None: all four.
        specs: the tasks; None: `tasks` with its defaults.

    Raises:
        UserError: no such folder, split or task, or files of no known version.
    """
    base = find_root(root, "NYUD_MT", "gt_sets")
    names = read_list(base / "gt_sets" / f"{split}.txt")
    specs = tasks() if specs is None else specs
    version = recognise(base, names[0])
    extensions = VERSIONS[version]
    void = specs["segmentation"].channels == len(CLASS_NAMES)
    decoders: dict[str, Callable[..., Target]] = {
        "segmentation": partial(_segmentation, void=void),
        "depth": _depth,
        "normals": _normals,
        "edges": _edges,
    }
    sources = {
        key: TargetFiles(base, ((f"{FOLDERS[key]}/{{name}}.{extensions[key]}",),), decode)
        for key, decode in decoders.items()
    }
    pattern = f"images/{{name}}.{extensions['images']}"
    images = DenseImages(f"NYUD ({version})", base, split, names, pattern, specs, sources)
    images = images.only(list(specs) if only is None else only)
    for key in images.tasks:
        if not (base / FOLDERS[key]).is_dir():
            raise UserError(
                f"'{base}' has no folder {FOLDERS[key]}, which task '{key}' needs; unpack it or drop the task"
            )
    return images


def recognise(base: Path, name: str) -> str:
    """Which archive a folder holds: a key of `VERSIONS`, by the extensions of one image's files.

    Folders may be missing; those that are there must fit one version and no other.

    Raises:
        UserError: no version fits, or several do.
    """
    found = {
        key: {
            extension for extension in ("jpg", "png", "mat", "npy") if (base / folder / f"{name}.{extension}").is_file()
        }
        for key, folder in FOLDERS.items()
        if (base / folder).is_dir()
    }
    fitting = [
        version
        for version, extensions in VERSIONS.items()
        if all(extensions[key] in present for key, present in found.items())
    ]
    if "images" in found and len(fitting) == 1:
        return fitting[0]
    seen = ", ".join(f"{FOLDERS[key]}: {'/'.join(sorted(kinds)) or 'nothing'}" for key, kinds in found.items())
    verdict = f"fits {' and '.join(fitting)}" if fitting else "fits no published NYUD archive (astmt, mti, atrc)"
    raise UserError(
        f"'{base}': what there is of image '{name}' ({seen or 'nothing'}) {verdict}; unpack one whole archive"
    )


def _segmentation(size: tuple[int, int], path: Path, void: bool) -> Target:
    stored = read_mat(path, "segmentation") if path.suffix == ".mat" else read_numbers(path)
    labels = as_map(stored, path).astype(np.int64)
    if not void:
        return classes_target(labels, np.ones(labels.shape, dtype=bool), len(CLASS_NAMES) + 1, path)
    return classes_target(labels - 1, labels != 0, len(CLASS_NAMES), path)


def _depth(size: tuple[int, int], path: Path) -> Target:
    return depth_target(as_map(read_mat(path, "depth") if path.suffix == ".mat" else read_npy(path), path))


def _normals(size: tuple[int, int], path: Path) -> Target:
    if path.suffix != ".npy":
        return normals_target(normals_from_bytes(read_image(path)))
    vectors = read_npy(path)
    if vectors.ndim != 3 or vectors.shape[-1] != 3:
        raise UserError(f"'{path}' holds an array of shape {vectors.shape}; normals (height, width, 3) were expected")
    return normals_target(torch.from_numpy(vectors.astype(np.float32)).permute(2, 0, 1))


def _edges(size: tuple[int, int], path: Path) -> Target:
    if path.suffix == ".npy":
        return share_target(as_map(read_npy(path), path), path)
    return share_target(read_grey(path).astype(np.float32) / 255, path)
