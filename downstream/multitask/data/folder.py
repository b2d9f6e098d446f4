"""Your own labelled images, for any of the six tasks. One folder:

    ROOT/
      images/NAME.jpg           also png, jpeg, webp, bmp, tif; 8 bits, RGB or grey
      train.txt  val.txt        image names without extension, one a line; or in ROOT/splits/. Other lists work too
      classes.txt               names of the classes of segmentation, one a line: the first line is class 0
      parts.txt                 the same for parts
      segmentation/NAME.png     class numbers (grey or palette PNG); 255 = void: neither trained on nor judged
      parts/NAME.png            the same for parts of people; 255 where people are not annotated
      saliency/NAME.png         grey, 0 = background, 255 = salient object
      edges/NAME.png            grey, 255 = boundary, thin lines. Several annotators: the mean of their maps; what at
                                least half of them drew is learnt
      normals/NAME.png          RGB, (n + 1) / 2 * 255 for every component of the unit vector n; (127, 127, 127) = hole
      depth/NAME.png, .npy      16-bit grey PNG in millimetres, or float array in metres; 0 = no measurement

Only the folders of the tasks that are asked for must exist. Every target has the size of its image.

A first class called ``background`` (or ``void``) is drawn black. Normals are ``x right, y into the scene, z up``
(``normals_axes: nyud``) or ``x right, y down, z into the scene`` (``camera``); surfaces that face the camera have a
negative second or third component. Boundaries may be missed by 0.0075 of the image's diagonal, as on PASCAL.

``polyscene check CONFIG`` reads all of it and tells what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.png import read_grey, read_numbers

from ..tasks import depth, edges, normals, saliency
from ..tasks.segmentation import class_task
from ..tasks.spec import Target, TaskSpec
from .files import as_map, read_list, read_npy
from .records import DenseImages, TargetFiles
from .targets import classes_target, depth_target, normals_from_bytes, normals_target, share_target

TASKS = ("segmentation", "parts", "saliency", "edges", "normals", "depth")
CLASS_LISTS = {"segmentation": "classes.txt", "parts": "parts.txt"}
VOID = 255

_IMAGES = tuple(
    ending for name in ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff") for ending in (name, name.upper())
)
_TITLES = {"segmentation": "Semantic segmentation", "parts": "Human parts"}


def make_task(
    name: str,
    classes: Sequence[str] = (),
    depth_protocol: str = "survey",
    saliency_protocol: str = "rcm",
    axes: str = "nyud",
) -> TaskSpec:
    """A task of such a folder.

    Args:
        name: one of `TASKS`.
        classes: names, for segmentation and parts.
        depth_protocol: see `depth.task`.
        saliency_protocol: see `saliency.task`.
        axes: see `normals.task`.

    Raises:
        ValueError: another name or setting.
    """
    if name in CLASS_LISTS:
        background = classes[0].lower() in ("background", "void")
        return class_task(name, _TITLES[name], len(classes), tuple(classes), background)
    makers: dict[str, Callable[[], TaskSpec]] = {
        "saliency": partial(saliency.task, saliency_protocol),
        "edges": edges.task,
        "normals": partial(normals.task, axes),
        "depth": partial(depth.task, depth_protocol),
    }
    if name not in makers:
        raise ValueError(f"task '{name}': must be one of {', '.join(TASKS)}")
    return makers[name]()


def open_folder(
    root: str | Path,
    split: str,
    only: Sequence[str] | None = None,
    depth_protocol: str = "survey",
    saliency_protocol: str = "rcm",
    axes: str = "nyud",
) -> DenseImages:
    """A split of a folder of labelled images, laid out as this module's first lines say.

    Args:
        root: the folder.
        split: name of a list: ``train`` for ``ROOT/train.txt`` or ``ROOT/splits/train.txt``.
        only: names of the tasks to read; None: all that have a folder.
        depth_protocol: see `depth.task`.
        saliency_protocol: see `saliency.task`.
        axes: see `normals.task`.

    Raises:
        UserError: a folder or list that is missing, an empty or repeated class name, or a task that does not exist.
    """
    root = Path(root).expanduser()
    if not (root / "images").is_dir():
        raise UserError(f"'{root}' has no folder images; put the images there as images/NAME.jpg")
    names = _names(root, split)
    chosen = [name for name in TASKS if (root / name).is_dir()] if only is None else list(only)
    specs, sources = {}, {}
    for name in chosen:
        if name not in TASKS:
            raise UserError(f"a folder of images has no task '{name}'; it may have {', '.join(TASKS)}")
        if not (root / name).is_dir():
            raise UserError(f"'{root}' has no folder {name}, which task '{name}' needs; add it or drop the task")
        classes = _class_names(root / CLASS_LISTS[name], name) if name in CLASS_LISTS else ()
        specs[name] = make_task(name, classes, depth_protocol, saliency_protocol, axes)
        sources[name] = TargetFiles(root, (_places(name),), _decoder(name, len(classes)))
    first, *others = (f"images/{{name}}.{ending}" for ending in _IMAGES)
    return DenseImages(f"folder {root.name}", root, split, names, first, specs, sources, tuple(others))


def person_images(images: DenseImages, progress: Callable[[int], None] | None = None) -> list[int]:
    """Indices of the images with a person: those with a part, a class above 0 that is not void.

    Args:
        images: of `open_folder`, with the task ``parts``.
        progress: called with 1 for every file read.

    Raises:
        UserError: a file is damaged, or the task ``parts`` is not among those opened.
    """
    if "parts" not in images.sources:
        raise UserError(f"{images.title} was opened without the task 'parts'; add it")
    found = []
    for index, name in enumerate(images.names):
        stored = read_numbers(images.root / "parts" / f"{name}.png")
        if ((stored > 0) & (stored != VOID)).any():
            found.append(index)
        if progress is not None:
            progress(1)
    return found


def _names(root: Path, split: str) -> tuple[str, ...]:
    places = [root / f"{split}.txt", root / "splits" / f"{split}.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"'{root}' has no list {split}.txt (nor splits/{split}.txt); write one image name a line")
    names = read_list(path)
    ending = names[0].rpartition(".")[2]
    if ending in _IMAGES:
        raise UserError(f"the list '{path}' names files ('{names[0]}'); leave out the endings .{ending}")
    return names


def _class_names(path: Path, task: str) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; task '{task}' needs it: the names of the classes, one a line")
    names = read_list(path)
    if len(names) > VOID:
        raise UserError(f"'{path}' names {len(names)} classes, more than {VOID}; {VOID} is void")
    return names


def _places(task: str) -> tuple[str, ...]:
    return ("depth/{name}.png", "depth/{name}.npy") if task == "depth" else (f"{task}/{{name}}.png",)


def _decoder(task: str, classes: int) -> Callable[..., Target]:
    decoders: dict[str, Callable[..., Target]] = {
        "saliency": _share,
        "edges": _share,
        "normals": _normals,
        "depth": _depth,
    }
    return decoders.get(task) or partial(_classes, count=classes)


def _classes(size: tuple[int, int], path: Path, count: int) -> Target:
    labels = as_map(read_numbers(path), path)
    return classes_target(labels, labels != VOID, count, path)


def _share(size: tuple[int, int], path: Path) -> Target:
    values = read_grey(path)
    # A mask of 0 and 1 would be read as all but black, and train a network that finds nothing.
    if values.max() == 1:
        raise UserError(f"'{path}' holds 0 and 1; store 0 and 255")
    return share_target(values.astype(np.float32) / 255, path)


def _normals(size: tuple[int, int], path: Path) -> Target:
    return normals_target(normals_from_bytes(read_image(path)))


def _depth(size: tuple[int, int], path: Path) -> Target:
    if path.suffix == ".npy":
        metres = as_map(read_npy(path), path)
        if metres.dtype.kind != "f":
            raise UserError(f"'{path}' holds {metres.dtype}; store metres as floats, or millimetres as a 16-bit PNG")
        return depth_target(metres)
    millimetres = as_map(read_numbers(path, "depth map"), path)
    if millimetres.dtype.itemsize < 2:
        raise UserError(f"'{path}' holds 8 bits; store millimetres in 16 bits (or metres as .npy)")
    return depth_target(millimetres / 1000)
