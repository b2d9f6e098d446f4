"""PASCAL-Context for multi-task learning: 4,998 training and 5,105 test images, in both published naming schemes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from polyscene.downstream.scenes.classes import VOC_NAMES
from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.png import read_grey, read_numbers

from ..tasks import edges, normals, parts, saliency, segmentation
from ..tasks.spec import Target, TaskSpec
from .context_classes import NORMALS_CLASSES
from .files import as_map, read_list, read_mat
from .records import DenseImages, TargetFiles, find_root
from .targets import classes_target, normals_from_bytes, normals_target, share_target

PUBLISHED_COUNTS = {"train": 4998, "val": 5105}

PERSON = 15
"""Number of the class person in VOC and in PASCAL-Part."""

PART_CLASS = {
    **dict.fromkeys(("head", "hair", "lear", "rear", "leye", "reye", "lebrow", "rebrow", "nose", "mouth"), 1),
    **dict.fromkeys(("torso", "neck"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}
"""The 24 part names of people in PASCAL-Part -> the six parts that are learnt."""

_SCHEMES = {
    "astmt": {
        "context": ("pascal-context/trainval/{name}.mat",),
        "parts": ("human_parts/{name}.mat",),
        "segmentation": ("semseg/VOC12/{name}.png", "semseg/pascal-context/{name}.png"),
        "normals": ("normals_distill/{name}.png",),
        "saliency": ("sal_distill/{name}.png",),
    },
    "rcm": {
        "context": ("Context/trainval/{name}.mat",),
        "parts": ("PascalParts/{name}.mat",),
        "segmentation": ("SemanticSegmentation/Context/{name}.png",),
        "normals": ("NormalsDistill/{name}.png",),
        "saliency": ("SaliencyDistill/{name}.png",),
    },
}


def tasks(saliency_protocol: str = "rcm", axes: str = "nyud") -> dict[str, TaskSpec]:
    """The tasks of PASCAL-Context.

    Args:
        saliency_protocol: ``rcm``, ``survey`` or ``atrc``, see `saliency.task`.
        axes: of the normals, see `normals.task`; they were distilled from a network trained on NYUD.
    """
    specs = (
        segmentation.task(len(VOC_NAMES), VOC_NAMES),
        parts.task(),
        saliency.task(saliency_protocol),
        edges.task(max_distance=0.0075),
        normals.task(axes),
    )
    return {spec.name: spec for spec in specs}


def open_pascal_context(
    root: str | Path, split: str, only: Sequence[str] | None = None, specs: dict[str, TaskSpec] | None = None
) -> DenseImages:
    """A split of PASCAL-Context in either naming scheme.

    Args:
        root: the unpacked folder, or what holds it as ``PASCAL_MT``.
        split: ``train`` or ``val``; any list in ``ImageSets/Context``.
        only: names of the tasks to read; None: all five.
        specs: the tasks; None: `tasks` with its defaults.

    Raises:
        UserError: no such folder, split or task, or folders of no known scheme.
    """
    base = find_root(root, "PASCAL_MT", "ImageSets/Context")
    names = read_list(base / "ImageSets" / "Context" / f"{split}.txt")
    specs = tasks() if specs is None else specs
    scheme = recognise(base)
    places = _SCHEMES[scheme]
    needed: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[..., Target]]] = {
        "segmentation": ((places["segmentation"],), _segmentation),
        "parts": ((places["parts"],), _parts),
        "saliency": ((places["saliency"],), _saliency),
        "edges": ((places["context"],), _edges),
        "normals": ((places["normals"], places["context"]), _normals),
    }
    sources = {key: TargetFiles(base, patterns, decode) for key, (patterns, decode) in needed.items()}
    images = DenseImages(
        f"PASCAL-Context ({scheme})", base, split, names, "JPEGImages/{name}.jpg", specs, sources
    ).only(list(specs) if only is None else only)
    for key in images.tasks:
        for choices in needed[key][0]:
            folders = [choice.rpartition("/")[0] for choice in choices]
            if not any((base / folder).is_dir() for folder in folders):
                raise UserError(
                    f"'{base}' has no folder {folders[0]}, which task '{key}' needs; unpack it or drop the task"
                )
    return images


def recognise(base: Path) -> str:
    """The naming scheme of a folder, ``astmt`` or ``rcm``: the one of which it has more annotation folders.

    Raises:
        UserError: it has none, or as many of both.
    """
    count = {
        scheme: sum(any((base / c.rpartition("/")[0]).is_dir() for c in choices) for choices in places.values())
        for scheme, places in _SCHEMES.items()
    }
    if count["astmt"] == count["rcm"]:
        verdict = "has no annotation folder" if not count["rcm"] else "mixes two naming schemes"
        raise UserError(
            f"'{base}' {verdict}; expected pascal-context human_parts semseg normals_distill sal_distill, or "
            "Context PascalParts SemanticSegmentation NormalsDistill SaliencyDistill"
        )
    return max(count, key=count.__getitem__)


def person_images(images: DenseImages, progress: Callable[[int], None] | None = None) -> list[int]:
    """Indices of the images with an annotated person: what a human parts model is trained on.

    Taken from ``ImageSets/Parts/<split>.txt`` (JSON: name -> VOC numbers of the image's objects) where it knows every
    image, else from the part files, which takes minutes.

    Args:
        images: of `open_pascal_context`, with the task ``parts``.
        progress: called with 1 for every part file read.

    Raises:
        UserError: the list or a part file is damaged, or the task ``parts`` is not among those opened.
    """
    if "parts" not in images.sources:
        raise UserError(f"{images.title} was opened without the task 'parts'; add it")
    listed = _listed_objects(images.root / "ImageSets" / "Parts" / f"{images.split}.txt")
    if all(name in listed for name in images.names):
        return [i for i, name in enumerate(images.names) if PERSON in listed[name]]
    pattern = images.sources["parts"].patterns[0][0]
    found = []
    for index, name in enumerate(images.names):
        if any(number == PERSON for number, _ in _objects(images.root / pattern.format(name=name))):
            found.append(index)
        if progress is not None:
            progress(1)
    return found


def _listed_objects(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [int(number) for number in numbers] for name, numbers in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the list '{path}' ({reason}); delete it, it is then not used") from error


def _objects(path: Path) -> list[tuple[int, np.void]]:
    """The objects of a PASCAL-Part file: class number and structure (class, class_ind, mask, parts)."""
    anno = read_mat(path, "anno")
    try:
        return [(int(entry["class_ind"].item()), entry) for entry in anno["objects"].item().ravel()]
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}': 'anno' is not the structure of PASCAL-Part ({error})") from error


def _parts(size: tuple[int, int], path: Path) -> Target:
    # An image without annotated parts of people says nothing about them: not valid anywhere.
    labels, annotated = np.zeros(size, dtype=np.int64), False
    for number, entry in _objects(path):
        if number != PERSON or not entry["parts"].size:
            continue
        for part in entry["parts"].ravel():
            name, mask = str(part["part_name"].item()), part["mask"].astype(bool)
            if name not in PART_CLASS:
                raise UserError(f"'{path}': a person has the unknown part '{name}'")
            if mask.shape != size:
                raise UserError(f"'{path}': the mask of '{name}' is {mask.shape}, the image {size}")
            labels[mask] = PART_CLASS[name]
            annotated = annotated or bool(mask.any())
    return classes_target(labels, np.full(size, annotated), len(parts.PART_NAMES), path)


def _segmentation(size: tuple[int, int], path: Path) -> Target:
    labels = as_map(read_numbers(path), path)
    return classes_target(labels, labels != 255, len(VOC_NAMES), path)


def _saliency(size: tuple[int, int], path: Path) -> Target:
    return share_target((read_grey(path) > 127).astype(np.float32), path)


def _edges(size: tuple[int, int], path: Path) -> Target:
    return share_target(label_boundaries(_label_map(path)).astype(np.float32), path)


def label_boundaries(labels: np.ndarray) -> np.ndarray:
    """Thinned boundaries of a label map: (H, W) numbers -> (H, W) bool.

    As the published loaders make them: pixels where the Laplacian of the numbers is not zero (mirrored at the border),
    about two pixels wide, then thinned (Guo and Hall, 1989).
    """
    from scipy.ndimage import laplace
    from skimage.morphology import thin

    return thin(laplace(labels.astype(np.int64), mode="mirror") != 0)


def _normals(size: tuple[int, int], path: Path, context: Path) -> Target:
    vectors = normals_from_bytes(read_image(path))
    known = np.isin(_label_map(context), NORMALS_CLASSES)
    if known.shape != vectors.shape[1:]:
        raise UserError(f"'{path}' is {tuple(vectors.shape[1:])}, '{context}' {known.shape}; both must have one size")
    return normals_target(vectors, torch.from_numpy(known))


def _label_map(path: Path) -> np.ndarray:
    return as_map(read_mat(path, "LabelMap"), path)
