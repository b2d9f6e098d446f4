"""A folder of images that may have several classes each, named in a ``labels.csv`` beside them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from polyscene.runtime.errors import UserError

from .datasets import LabelledImages
from .images import ImageFiles


def open_multi_label(folder: Path, names: Sequence[str]) -> LabelledImages:
    """The images of a folder with the classes that its ``labels.csv`` gives them.

    Args:
        folder: holds the images and ``labels.csv``.
        names: the images, relative to the folder.

    Raises:
        UserError: see :func:`read_labels_csv`; an image without a row, a row without its image, no class at all.
    """
    file = folder / "labels.csv"
    rows = read_labels_csv(file)
    missing = sorted(rows.keys() - set(names))
    if missing:
        raise UserError(f"{file}: '{missing[0]}' is no image in '{folder}' ({len(missing)} such rows); correct them")
    unlabelled = [name for name in names if name not in rows]
    if unlabelled:
        raise UserError(
            f"{file}: {len(unlabelled)} images have no row, the first is '{unlabelled[0]}'; add them "
            "(an image without classes has an empty second cell)"
        )
    classes = tuple(sorted({label.removeprefix("?") for labels in rows.values() for label in labels}))
    if not classes:
        raise UserError(f"{file}: names no class at all")
    number = {name: i for i, name in enumerate(classes)}
    targets = torch.full((len(names), len(classes)), -1, dtype=torch.int8)
    for row, name in enumerate(names):
        for label in rows[name]:
            targets[row, number[label.removeprefix("?")]] = 0 if label.startswith("?") else 1
    return LabelledImages(ImageFiles(folder, names), targets, classes)


def read_labels_csv(file: Path) -> dict[str, list[str]]:
    """File name -> class names of a label list.

    The list is UTF-8 text with the head line ``file,labels`` and a row per image: its path relative to the list, and
    its classes, separated by spaces, or by semicolons if the list has any (then names may contain spaces). ``?name``
    says that the class is doubtful in this image: neither positive nor negative, as VOC's difficult objects::

        file,labels
        street/001.jpg,car person ?bicycle
        street/002.jpg,

    Raises:
        UserError: not readable, no such head line, another number of cells, an image or a class twice in a place.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            lines = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from error
    if not lines or [cell.strip() for cell in lines[0]] != ["file", "labels"]:
        raise UserError(f"{file}: the first line must be 'file,labels'")
    separator = ";" if any(";" in row[-1] for row in lines[1:]) else None
    labels: dict[str, list[str]] = {}
    for row in lines[1:]:
        if len(row) != 2:
            raise UserError(f"{file}: '{','.join(row)}' has {len(row)} cells; a row is 'FILE,CLASS CLASS ...'")
        name = row[0].strip()
        words = [word for word in (part.strip() for part in row[1].split(separator)) if word]
        if name in labels:
            raise UserError(f"{file}: '{name}' has two rows; keep one")
        if len({word.removeprefix("?") for word in words}) < len(words) or "?" in words:
            raise UserError(f"{file}: '{name}' names a class twice, or '?' without a class")
        labels[name] = words
    return labels
