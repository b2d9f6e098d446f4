"""Writers of the four published layouts: image folder, NYUD_MT, PASCAL_MT and VOC2007."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import scipy.io
from PIL import Image

from .annotate import boundaries, object_boxes, saliency
from .classes import CLASSES, VOC_NAMES, lookup_table, palette
from .render import Annotation

# The VOC classes that scenes can contain; only these get <class>_<split>.txt lists.
VOC_PRESENT = tuple(sorted({VOC_NAMES[entry.voc] for entry in CLASSES if entry.voc}))


@dataclass(frozen=True)
class Shot:
    """One picture of the plan: its name, room (= image label), split, and which camera and lighting it uses."""

    name: str
    room: str
    split: str  # "train" or "val"
    camera: int
    lighting: int


def encode_image(image: np.ndarray | Image.Image, kind: str, **options: int) -> bytes:
    """Bytes of an image file; ``kind`` is Pillow's format name."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_mat(content: Mapping[str, np.ndarray], compress: bool) -> bytes:
    """Bytes of a MATLAB 5 file whose header holds no date, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, dict(content), do_compression=compress)
    text = b"MATLAB 5.0 MAT-file, written by PolyScene".ljust(116)
    return text + buffer.getvalue()[116:]


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit vectors (H, W, 3) as uint8 so that ``2 * x / 255 - 1`` restores them; the zero vector becomes 128."""
    return (normals * np.float32(127.5) + np.float32(128)).clip(0, 255).astype(np.uint8)


def human_parts(truth: Annotation, objects: Sequence[tuple]) -> dict[str, np.ndarray]:
    """The ``anno`` structure of PASCAL-Part: objects with class, mask and, for persons, named part masks."""
    fields = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    listed = np.zeros((1, len(objects)), dtype=fields)
    for k, (kind, instance, _, _) in enumerate(objects):
        mask = truth.instances == instance
        parts = np.zeros((0, 0))
        if VOC_NAMES[kind] == "person":
            numbers = [int(n) for n in np.unique(truth.parts[mask]) if n]
            parts = np.zeros((1, len(numbers)), dtype=[("part_name", object), ("mask", object)])
            for j, number in enumerate(numbers):
                shown = (mask & (truth.parts == number)).astype(np.uint8)
                parts[0, j] = (truth.part_names[number - 1], shown)
        listed[0, k] = (VOC_NAMES[kind], kind, mask.astype(np.uint8), parts)
    anno = np.zeros((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = ("", listed)
    return {"anno": anno}


def voc_semseg(truth: Annotation, objects: Sequence[tuple]) -> Image.Image:
    """Palette PNG of VOC class ids, with a void (255) outline around every VOC object."""
    ids = lookup_table("voc").astype(np.uint8)[truth.labels]
    listed = np.isin(truth.instances, [instance for _, instance, _, _ in objects])
    ids[~listed & (ids > 0)] = 255  # too small to be annotated
    edge = boundaries(truth.instances)
    beside = listed.copy()
    beside[:, :-1] |= listed[:, 1:]
    beside[:-1] |= listed[1:]
    ids[edge & beside] = 255
    picture = Image.fromarray(ids)
    picture.putpalette(palette().tobytes())
    return picture


def voc_annotation(shot: Shot, size: tuple[int, int], objects: Sequence[tuple]) -> str:
    """The VOC XML file of one picture; objects under 150 pixels are marked difficult."""
    height, width = size
    lines = [
        "<annotation>",
        "\t<folder>VOC2007</folder>",
        f"\t<filename>{escape(shot.name)}.jpg</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for kind, _, (left, top, right, bottom), area in objects:
        cut = int(left == 0 or top == 0 or right == width - 1 or bottom == height - 1)
        lines.append(
            f"\t<object><name>{VOC_NAMES[kind]}</name><pose>Unspecified</pose><truncated>{cut}</truncated>"
            f"<difficult>{int(area < 150)}</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right + 1}</xmax><ymax>{bottom + 1}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _share(source: Path, target: Path) -> None:
    """The same bytes under a second name: a hard link where the file system has them, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class EncodedTruth:
    """Files of the annotations of one camera, the same under every lighting.

    ``files`` maps a path under OUT, with ``{name}`` for the picture's name, to its bytes; ``objects`` are the VOC
    objects as :func:`annotate.object_boxes` lists them; ``indoor`` = the picture belongs in NYUD_MT.
    """

    files: dict[str, bytes]
    objects: tuple[tuple, ...]
    size: tuple[int, int]
    indoor: bool


def encode_truth(truth: Annotation, indoor: bool) -> EncodedTruth:
    """Encode all annotation files of one camera."""
    objects = tuple(object_boxes(truth.instances, truth.labels))
    normals = encode_normals(truth.normals)
    salient = saliency(truth.instances, truth.labels).astype(np.uint8) * 255
    context = {"LabelMap": lookup_table("context")[truth.labels]}
    files = {
        "PASCAL_MT/pascal-context/trainval/{name}.mat": encode_mat(context, True),
        "PASCAL_MT/human_parts/{name}.mat": encode_mat(human_parts(truth, objects), True),
        "PASCAL_MT/semseg/VOC12/{name}.png": encode_image(voc_semseg(truth, objects), "PNG", compress_level=1),
        "PASCAL_MT/normals_distill/{name}.png": encode_image(normals, "PNG", compress_level=1),
        "PASCAL_MT/sal_distill/{name}.png": encode_image(salient, "PNG", compress_level=1),
    }
    if indoor:
        edge = boundaries(truth.instances).astype(np.uint8) * 255
        classes = {"segmentation": lookup_table("nyu").astype(np.uint8)[truth.labels]}
        files |= {
            "NYUD_MT/edge/{name}.png": encode_image(edge, "PNG", compress_level=1),
            "NYUD_MT/segmentation/{name}.mat": encode_mat(classes, True),
            "NYUD_MT/normals/{name}.jpg": encode_image(normals, "JPEG", quality=95, subsampling=0),
            "NYUD_MT/depth/{name}.mat": encode_mat({"depth": truth.depth}, False),
        }
    return EncodedTruth(files, objects, truth.labels.shape, indoor)


def write_scene(out: Path, shot: Shot, image: np.ndarray, truth: EncodedTruth) -> dict[str, list[int]]:
    """Write one (H, W, 3) uint8 picture and its annotations into all layouts under ``out``.

    Returns what the split lists need: ``present`` (VOC class ids with an easy object), ``difficult`` (ids with
    difficult objects only) and ``objects`` (VOC ids in order of ``anno``).
    """
    jpeg = out / "images" / shot.split / shot.room / f"{shot.name}.jpg"
    _write(jpeg, encode_image(image, "JPEG", quality=92))
    voc = out / "VOCdevkit" / "VOC2007"
    _share(jpeg, out / "PASCAL_MT" / "JPEGImages" / jpeg.name)
    _share(jpeg, voc / "JPEGImages" / jpeg.name)
    if truth.indoor:
        _share(jpeg, out / "NYUD_MT" / "images" / jpeg.name)
    _write(voc / "Annotations" / f"{shot.name}.xml", voc_annotation(shot, truth.size, truth.objects))
    for pattern, content in truth.files.items():
        _write(out / pattern.format(name=shot.name), content)
    easy = {kind for kind, _, _, area in truth.objects if area >= 150}
    return {
        "present": sorted(easy),
        "difficult": sorted({kind for kind, _, _, _ in truth.objects} - easy),
        "objects": [kind for kind, _, _, _ in truth.objects],
    }


def write_lists(
    out: Path, shots: Sequence[Shot], found: Sequence[Mapping[str, list[int]]], indoor: Sequence[bool]
) -> None:
    """Write the split files of NYUD_MT, PASCAL_MT and VOC2007 (train = train, held-out pictures = val or test)."""
    for split, voc_split in (("train", "trainval"), ("val", "test")):
        rows = [(s, f, i) for s, f, i in zip(shots, found, indoor) if s.split == split]
        names = [s.name for s, _, _ in rows]
        _write(out / "NYUD_MT" / "gt_sets" / f"{split}.txt", _lines(s.name for s, _, i in rows if i))
        _write(out / "PASCAL_MT" / "ImageSets" / "Context" / f"{split}.txt", _lines(names))
        parts = json.dumps({s.name: f["objects"] for s, f, _ in rows}, indent=0)
        _write(out / "PASCAL_MT" / "ImageSets" / "Parts" / f"{split}.txt", parts + "\n")
        main = out / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
        _write(main / f"{voc_split}.txt", _lines(names))
        for label in VOC_PRESENT:
            kind = VOC_NAMES.index(label)
            flags = (1 if kind in f["present"] else 0 if kind in f["difficult"] else -1 for _, f, _ in rows)
            _write(main / f"{label}_{voc_split}.txt", _lines(f"{n} {flag:2d}" for n, flag in zip(names, flags)))


def _lines(items) -> str:
    return "".join(f"{item}\n" for item in items)
