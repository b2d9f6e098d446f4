"""Single-label classification sets as torchvision stores them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polyscene.runtime.errors import UserError

from .datasets import LabelledImages
from .images import ImageFiles, ImageObjects

# kind -> what data.root must hold.
LAYOUTS = {
    "cifar10": "cifar-10-batches-py/{data_batch_1..5, test_batch, batches.meta}",
    "food101": "food-101/{images/CLASS/*.jpg, meta/{train,test}.json}",
    "oxford_iiit_pet": "oxford-iiit-pet/{images/*.jpg, annotations/{trainval,test}.txt}",
    "stanford_cars": "stanford_cars/{cars_train, cars_test, devkit/*.mat, cars_test_annos_withlabels.mat}",
    "sun397": "SUN397/{ClassName.txt, a..z/CLASS/sun_*.jpg}, and Training_01.txt and Testing_01.txt of Partitions.zip",
    "places365": "{categories_places365.txt, places365_train_standard.txt, places365_val.txt, "
    "data_256_standard, val_256} (or data_large_standard, val_large)",
}
_NOT_DOWNLOADABLE = ("stanford_cars",)


def open_torchvision(kind: str, root: Path, download: bool = False) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images of a data set of `LAYOUTS`.

    Food101, StanfordCars: train and test. OxfordIIITPet: trainval and test. CIFAR10: train and test, images in memory.
    SUN397: the first of the ten official partitions. Places365: train-standard and val, the small images if present.

    Args:
        kind: a key of `LAYOUTS`.
        root: folder that holds, or gets, the data set's own folder.
        download: fetch what is missing.

    Raises:
        UserError: missing or damaged files; the download failed.
    """
    root = root.expanduser()
    openers = {
        "cifar10": _cifar10,
        "food101": _food101,
        "oxford_iiit_pet": _oxford_iiit_pet,
        "stanford_cars": _stanford_cars,
        "sun397": _sun397,
        "places365": _places365,
    }
    if download and kind in _NOT_DOWNLOADABLE:
        raise UserError(f"data.kind={kind} can no longer be downloaded; put {LAYOUTS[kind]} into data.root by hand")
    try:
        return openers[kind](root, download)
    except UserError:
        raise
    # A missing file and a broken one look alike: every data set class raises what happens to go wrong.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if download:
            raise UserError(f"data.kind={kind}: the download to '{root}' failed ({reason})") from error
        remedy = "" if kind in _NOT_DOWNLOADABLE else "; data.download=true fetches it"
        raise UserError(
            f"data.kind={kind} is not in data.root='{root}' ({reason}): expected {LAYOUTS[kind]}{remedy}"
        ) from error


def _path(name: Any) -> Any:
    """As a loader: the file's name in place of its pixels, which are decoded later, in worker processes."""
    return name


def _files(root: Path, files: Sequence[Any], labels: Sequence[int], classes: Sequence[str]) -> LabelledImages:
    names = [os.path.relpath(file, root) for file in files]
    return LabelledImages(ImageFiles(root, names), torch.as_tensor(labels, dtype=torch.int64), tuple(classes))


def _cifar10(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import CIFAR10

    def part(train: bool) -> LabelledImages:
        found = CIFAR10(str(root), train=train, download=download)
        # torchvision has compared the files with their published checksums: the name says it all.
        images = ImageObjects(found, f"torchvision CIFAR10 {'train' if train else 'test'}")
        return LabelledImages(images, torch.as_tensor(found.targets, dtype=torch.int64), tuple(found.classes))

    return part(True), part(False)


def _food101(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import Food101

    def part(split: str) -> LabelledImages:
        found = Food101(str(root), split=split, download=download, loader=_path)
        files, labels = zip(*(found[i] for i in range(len(found))))
        return _files(root, files, labels, found.classes)

    return part("train"), part("test")


def _oxford_iiit_pet(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import OxfordIIITPet

    def part(split: str) -> LabelledImages:
        found = OxfordIIITPet(str(root), split=split, download=download)
        return _files(root, found._images, found._labels, found.classes)  # this class takes no loader

    return part("trainval"), part("test")


def _stanford_cars(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import StanfordCars

    def part(split: str) -> LabelledImages:
        found = StanfordCars(str(root), split=split, loader=_path)
        files, labels = zip(*(found[i] for i in range(len(found))))
        return _files(root, files, labels, found.classes)

    return part("train"), part("test")


def _sun397(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import SUN397

    found = SUN397(str(root), download=download, loader=_path)
    base = root / "SUN397"

    def part(name: str) -> LabelledImages:
        places = [folder / name for folder in (base, base / "Partitions", root, root / "Partitions")]
        listing = next((place for place in places if place.is_file()), None)
        if listing is None:
            raise UserError(
                f"'{base / name}' does not exist; torchvision's SUN397 has no split: unpack Partitions.zip of the "
                f"SUN397 page into '{base}'"
            )
        files = [line.strip().lstrip("/") for line in listing.read_text().splitlines() if line.strip()]
        labels = [found.class_to_idx["/".join(file.split("/")[1:-1])] for file in files]
        return _files(root, [base / file for file in files], labels, found.classes)

    return part("Training_01.txt"), part("Testing_01.txt")


def _places365(root: Path, download: bool) -> tuple[LabelledImages, LabelledImages]:
    from torchvision.datasets import Places365

    large = (root / "data_large_standard").is_dir() and not (root / "data_256_standard").is_dir()

    def part(split: str) -> LabelledImages:
        found = Places365(str(root), split=split, small=not large, download=download, loader=_path)
        files, labels = zip(*found.imgs)
        return _files(root, files, labels, found.classes)

    return part("train-standard"), part("val")
