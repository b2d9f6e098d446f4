"""Which images ``polyscene probe`` learns from and is judged on."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from polyscene.downstream.frozen.datasets import LabelledImages, align_classes
from polyscene.downstream.frozen.images import ImageFiles
from polyscene.downstream.frozen.multi_label import open_multi_label
from polyscene.downstream.frozen.torchvision_sets import open_torchvision
from polyscene.downstream.frozen.voc2007 import open_voc2007
from polyscene.runtime.errors import UserError
from polyscene.ssl.scanning import scan_images
from polyscene.ssl.sources import open_source


def open_pair(
    kind: str, *, root: str | None, train: str | None, test: str | None, download: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test images of a data set.

    ``folder`` takes ``train`` and ``test``, either with a folder per class (CLASS/*.jpg) or with images and a
    ``labels.csv`` (see `multi_label.read_labels_csv`). All other kinds take ``root``: ``voc2007`` (trainval and test)
    and ``imagenet`` (train and val) in the layout of their archives, the rest as torchvision stores them.

    Args:
        kind: ``folder``, ``voc2007``, ``imagenet`` or one of `torchvision_sets.LAYOUTS`.
        root: folder of the data set.
        train: folder of the training images.
        test: folder of the test images.
        download: fetch a missing data set, where torchvision can.

    Raises:
        UserError: missing folders, files or labels, another layout, one class only, a test class without training
            images.
    """
    if kind == "folder":
        for name, value in (("train", train), ("test", test)):
            if value is None:
                raise UserError(f"data.kind=folder needs data.{name}=FOLDER: CLASS/*.jpg, or images and a labels.csv")
        pair = _open_folder(train, "data.train"), _open_folder(test, "data.test")
        if pair[0].multi_label != pair[1].multi_label:
            raise UserError(
                "one of data.train and data.test has a labels.csv and the other class folders; both need the same"
            )
    elif root is None:
        raise UserError(f"data.kind={kind} needs data.root=FOLDER, the folder of the data set")
    elif kind == "voc2007":
        pair = open_voc2007(Path(root), "trainval", download), open_voc2007(Path(root), "test", download)
    elif kind == "imagenet":
        pair = _open_imagenet(root, "train"), _open_imagenet(root, "val")
    else:
        pair = open_torchvision(kind, Path(root), download)
    if len(pair[0].class_names) < 2:
        raise UserError(f"the training images have one class only ('{pair[0].class_names[0]}'); two are needed")
    return pair[0], align_classes(pair[1], pair[0])


def _open_folder(folder: str, key: str) -> LabelledImages:
    path = Path(folder).expanduser()
    if (path / "labels.csv").is_file():
        names = [os.fsdecode(name) for name in scan_images(str(path)).names]
        return open_multi_label(path, names)
    try:
        source = open_source("folder", path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if source.labels is None or source.class_names is None:
        raise UserError(
            f"{key}='{folder}' needs at least two sub-folders of images, one a class, or a labels.csv beside the images"
        )
    return LabelledImages(ImageFiles(source.root, source.paths), torch.as_tensor(source.labels), source.class_names)


def _open_imagenet(root: str, split: str) -> LabelledImages:
    source = open_source("imagenet", root, splits=(split,))
    return LabelledImages(ImageFiles(source.root, source.paths), torch.as_tensor(source.labels), source.class_names)
