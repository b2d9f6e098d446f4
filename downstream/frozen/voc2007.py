"""PASCAL VOC 2007 classification: ``VOCdevkit/VOC2007`` as the archives unpack it."""

from __future__ import annotations

from pathlib import Path

import torch

from polyscene.runtime.errors import UserError

from .datasets import LabelledImages
from .images import ImageFiles

_LAYOUT = "VOCdevkit/VOC2007/{JPEGImages/*.jpg, ImageSets/Main/{trainval,test,CLASS_trainval,CLASS_test}.txt}"


def open_voc2007(root: Path, split: str, download: bool = False) -> LabelledImages:
    """The images of a split with the flags of ``ImageSets/Main/CLASS_split.txt``.

    These say 1 where the class is seen, -1 where it is not, and 0 where all its objects are marked difficult: such an
    image is neither positive nor negative for the class. A class is what has such a file.

    Args:
        root: the folder that holds VOCdevkit.
        split: ``trainval`` or ``test``.
        download: fetch the archive through torchvision where the split is missing.

    Raises:
        UserError: missing files, or lists that contradict each other.
    """
    base = _find(root)
    if download and not (base / "ImageSets" / "Main" / f"{split}.txt").is_file():
        base = _download(root, split)
    main = base / "ImageSets" / "Main"
    if not (main / f"{split}.txt").is_file():
        raise UserError(
            f"'{main / f'{split}.txt'}' does not exist; data.root must hold {_LAYOUT}; data.download=true fetches it"
        )
    names = [line[0] for line in _read_list(main / f"{split}.txt")]
    if not names:
        raise UserError(f"'{main / f'{split}.txt'}' lists no image; unpack the archive again")
    files = sorted(main.glob(f"*_{split}.txt"))
    if not files:
        raise UserError(f"'{main}' has no CLASS_{split}.txt; data.root must hold {_LAYOUT}")
    row = {name: i for i, name in enumerate(names)}
    targets = torch.zeros(len(names), len(files), dtype=torch.int8)
    for column, file in enumerate(files):
        flags = _read_flags(file, row)
        targets[:, column] = torch.tensor([flags[name] for name in names], dtype=torch.int8)
    classes = tuple(file.name.removesuffix(f"_{split}.txt") for file in files)
    return LabelledImages(ImageFiles(base, [f"JPEGImages/{name}.jpg" for name in names]), targets, classes)


def _find(root: Path) -> Path:
    """The folder VOC2007, whether root is it, VOCdevkit, or what holds VOCdevkit."""
    root = root.expanduser()
    for base in (root / "VOCdevkit" / "VOC2007", root / "VOC2007", root):
        if (base / "ImageSets" / "Main").is_dir():
            return base
    return root / "VOCdevkit" / "VOC2007"


def _download(root: Path, split: str) -> Path:
    from torchvision.datasets import VOCDetection

    try:
        VOCDetection(str(root.expanduser()), year="2007", image_set=split, download=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"VOC 2007 {split} could not be downloaded to '{root}': {reason}") from error
    return root.expanduser() / "VOCdevkit" / "VOC2007"


def _read_list(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from error


def _read_flags(file: Path, names: dict[str, int]) -> dict[str, int]:
    flags = {}
    for words in _read_list(file):
        if len(words) != 2 or words[1] not in ("1", "-1", "0"):
            raise UserError(f"{file}: '{' '.join(words)}' is not 'IMAGE 1', 'IMAGE -1' or 'IMAGE 0'")
        flags[words[0]] = int(words[1])
    differ = sorted(flags.keys() ^ names.keys())
    if differ:
        raise UserError(
            f"{file}: the image '{differ[0]}' is in this list or in the split's, not in both ({len(differ)} such); "
            "unpack the archive again"
        )
    return flags
