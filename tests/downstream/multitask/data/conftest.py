"""Miniature archives with the formats, types and folders of the published ones, and the truth they were made from."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

H, W = 24, 40
NYUD_FORMATS = {
    "astmt": {"images": "jpg", "edge": "png", "segmentation": "mat", "normals": "jpg", "depth": "mat"},
    "mti": {"images": "jpg", "edge": "npy", "segmentation": "png", "normals": "npy", "depth": "npy"},
    "atrc": {"images": "png", "edge": "png", "segmentation": "png", "normals": "png", "depth": "npy"},
}
PASCAL_FOLDERS = {
    "astmt": ("pascal-context/trainval", "human_parts", "semseg/VOC12", "normals_distill", "sal_distill"),
    "rcm": ("Context/trainval", "PascalParts", "SemanticSegmentation/Context", "NormalsDistill", "SaliencyDistill"),
}


@dataclass
class Truth:
    """Segmentation 0..40 with void 0, depth with holes 0, unit normals (H, W, 3) with zero holes, binary edges."""

    image: np.ndarray
    segmentation: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    edge: np.ndarray


def truth(seed: int) -> Truth:
    """A smooth surface with a hole in the upper left corner."""
    y, x = np.mgrid[:H, :W]
    angle = x / W + 0.2 * seed
    normals = np.stack([0.6 * np.sin(angle), -np.cos(angle), 0.5 + 0 * y], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    depth = (1 + 0.1 * y + 0.01 * x + seed).astype(np.float32)
    segmentation = (1 + (x // 8) + 8 * (y // 8)).astype(np.uint8)  # 1..5, 9..13, 17..21
    segmentation[-1] = 40
    edge = (segmentation != np.roll(segmentation, 1, axis=1)).astype(np.uint8)
    edge[:, 0] = 0
    normals[:8, :8], depth[:8, :8], segmentation[:8, :8] = 0, 0, 0
    image = np.stack([x * 255 // W, y * 255 // H, 128 + 0 * x], axis=-1).astype(np.uint8)
    return Truth(image, segmentation, depth, normals.astype(np.float32), edge)


def write(path: Path, array: np.ndarray, key: str = "") -> None:
    """Store an array in the format of the path's extension, as the archives do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mat":
        scipy.io.savemat(path, {key: array}, do_compression=True)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        buffer = io.BytesIO()
        options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
        Image.fromarray(array).save(buffer, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
        path.write_bytes(buffer.getvalue())


def as_bytes(normals: np.ndarray) -> np.ndarray:
    return np.round((normals + 1) * 127.5).clip(0, 255).astype(np.uint8)


def write_nyud(root: Path, version: str, splits: dict[str, list[str]]) -> dict[str, Truth]:
    kinds, truths = NYUD_FORMATS[version], {}
    (root / "gt_sets").mkdir(parents=True)
    for split, names in splits.items():
        (root / "gt_sets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            truths[name] = t = truth(len(truths))
            stored = {
                "images": t.image,
                "edge": t.edge.astype(np.float32) if kinds["edge"] == "npy" else t.edge * 255,
                "segmentation": t.segmentation,
                "normals": t.normals if kinds["normals"] == "npy" else as_bytes(t.normals),
                "depth": t.depth,
            }
            for folder, array in stored.items():
                write(root / folder / f"{name}.{kinds[folder]}", array, folder)
    return truths


def person(parts: dict[str, np.ndarray], number: int = 15) -> tuple:
    """One object of PASCAL-Part with named part masks."""
    listed = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
    for k, (name, mask) in enumerate(parts.items()):
        listed[0, k] = (name, mask.astype(np.uint8))
    whole = np.zeros((H, W), dtype=np.uint8)
    return ("person" if number == 15 else "dog", number, whole, listed if parts else np.zeros((0, 0)))


def write_anno(path: Path, objects: list[tuple]) -> None:
    """The structure ``anno`` of PASCAL-Part, as MATLAB stores it."""
    listed = np.zeros((1, len(objects)), dtype=[(k, object) for k in ("class", "class_ind", "mask", "parts")])
    for k, entry in enumerate(objects):
        listed[0, k] = entry
    anno = np.zeros((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (path.stem, listed)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


def write_pascal(root: Path, scheme: str, lists: bool = True) -> None:
    """Image ``one`` shows a person with parts, ``two`` a dog, ``three`` a person without parts."""
    context, parts, semseg, normals, saliency = (root / folder for folder in PASCAL_FOLDERS[scheme])
    (root / "ImageSets" / "Context").mkdir(parents=True)
    (root / "ImageSets" / "Parts").mkdir()
    (root / "ImageSets" / "Context" / "train.txt").write_text("one\ntwo\n")
    (root / "ImageSets" / "Context" / "val.txt").write_text("three\n")
    box = np.zeros((H, W), dtype=bool)
    box[4:12, 10:20] = True
    head, hand = box & (np.mgrid[:H, :W][0] < 8), box & (np.mgrid[:H, :W][0] >= 8)
    objects = {
        "one": [person({"hair": head, "rhand": hand}), person({}, 12)],
        "two": [person({"head": head}, 12)],
        "three": [person({})],
    }
    for name in objects:
        t = truth(0)
        write(root / "JPEGImages" / f"{name}.jpg", t.image)
        labels = np.full((H, W), 360, dtype=np.uint16)  # sky: no normals there
        labels[:, W // 2 :] = 440  # wall: normals
        write(context / f"{name}.mat", labels, "LabelMap")
        write_anno(parts / f"{name}.mat", objects[name])
        seg = Image.fromarray(np.where(box, 15, 0).astype(np.uint8))
        seg.putpixel((0, 0), 255)
        seg.putpalette(list(range(256)) * 3)
        semseg.mkdir(parents=True, exist_ok=True)
        seg.save(semseg / f"{name}.png")
        write(normals / f"{name}.png", as_bytes(t.normals))
        grey = np.zeros((H, W), dtype=np.uint8)
        grey[0, :4] = (126, 127, 128, 255)
        write(saliency / f"{name}.png", grey)
    if lists:
        numbers = {"train": {"one": [15, 12], "two": [12]}, "val": {"three": [15]}}
        for split, content in numbers.items():
            (root / "ImageSets" / "Parts" / f"{split}.txt").write_text(json.dumps(content))


@pytest.fixture
def nyud_archive(tmp_path):
    """``nyud_archive(version) -> (root, truths)``: two training images and one for evaluation."""

    def make(version):
        root = tmp_path / "NYUD_MT"
        return root, write_nyud(root, version, {"train": ["0001", "0004"], "val": ["0002"]})

    return make


@pytest.fixture
def pascal_archive(tmp_path):
    """``pascal_archive(scheme) -> root``."""

    def make(scheme, lists=True):
        root = tmp_path / "PASCAL_MT"
        write_pascal(root, scheme, lists)
        return root

    return make


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Built-in scenes in all their layouts."""
    from polyscene.downstream.scenes.build import write_scenes

    out = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(out, count=8, size=(48, 64), seed=1, workers=1)
    return out
