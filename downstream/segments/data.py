"""Which images and label maps a retrieval reads: the VOC 2012 layout, or any folder of images + label PNGs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from polyscene.runtime.errors import UserError

VOC_SUBSET = ("aeroplane", "bottle", "bus", "car", "cat", "cow", "person")  # the seven of thesis table 7.6
VOC_IGNORE = (255,)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class LabelScheme:
    """What the values of a label map mean.

    Attributes:
        names: class names; value c of a label map is class c.
        ignore: values that are void: neither counted nor retrieved.
    """

    names: tuple[str, ...]
    ignore: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of classes C; inside the package, C itself stands for void."""
        return len(self.names)


@dataclass(frozen=True)
class Pairs:
    """Images with their label maps, all of which exist.

    Attributes:
        stems: path of every image below its folder, without suffix: its name for people.
        images: image files.
        labels: label PNGs, in the order of the images.
        saliency: saliency PNGs in the same order, or None.
    """

    stems: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    saliency: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return len(self.stems)


def voc2012(root: str | Path, train: str | None = None, test: str | None = None) -> tuple[Pairs, Pairs]:
    """The official VOC 2012 segmentation sets, with the additional training masks where they are present.

    Args:
        root: ``VOC2012``, or a folder that holds it directly or inside ``VOCdevkit``.
        train: a list in ``ImageSets/Segmentation``; by default ``train_aug``, ``trainaug`` or else ``train``.
        test: the same; by default ``val``.

    Returns:
        Images of the bank and images to segment.

    Raises:
        UserError: the folder, a list, an image or a mask is missing.
    """
    root = Path(root)
    candidates = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    base = next((c for c in candidates if (c / "ImageSets" / "Segmentation").is_dir()), None)
    if base is None:
        raise UserError(
            f"data.root='{root}' holds no VOCdevkit/VOC2012/ImageSets/Segmentation; "
            "unpack VOCtrainval_11-May-2012.tar there"
        )
    lists = base / "ImageSets" / "Segmentation"
    automatic = next((name for name in ("train_aug", "trainaug") if (lists / f"{name}.txt").is_file()), "train")
    found = []
    for key, name in (("data.train", train or automatic), ("data.test", test or "val")):
        path = lists / f"{name.removesuffix('.txt')}.txt"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
            raise UserError(f"{key}: the list '{path}' does not exist; lists there: {known}")
        # The additional masks (SBD) come in a folder of their own, which repeats those of VOC.
        masks = "SegmentationClassAug" if "aug" in name else "SegmentationClass"
        if not (base / masks).is_dir():
            raise UserError(f"{key}: the masks '{base / masks}' of the list '{path.name}' are missing; add the folder")
        stems = _read_list(path)
        images = _existing([base / "JPEGImages" / f"{stem}.jpg" for stem in stems], "image", path)
        labels = _existing([base / masks / f"{stem}.png" for stem in stems], "mask", path)
        found.append(Pairs(tuple(stems), images, labels))
    return _disjoint(*found)


def image_folder(
    images: str | Path,
    labels: str | Path,
    train: str | Sequence[str],
    test: str | Sequence[str],
    *,
    image_suffix: str = "",
    label_suffix: str = "",
) -> tuple[Pairs, Pairs]:
    """Two sets of images from a folder, with label PNGs from another.

    Image ``a/b/NAME{image_suffix}.jpg`` (any usual format) goes with label ``a/b/NAME{label_suffix}.png``.

    Args:
        images: folder of the images, searched with its sub-folders.
        labels: folder of the label maps.
        train: images of the bank: a text file with one name per line, a sub-folder of ``images``, or patterns of names
            such as ``0016E5*``; several may be given.
        test: images to segment, in the same way.
        image_suffix: end of image names that label names lack.
        label_suffix: end of label names that image names lack.

    Raises:
        UserError: a folder is missing; a choice names no image; an image has no mask; a mask of a chosen set has no
            image; an image is in both sets.
    """
    images, labels = Path(images), Path(labels)
    for key, folder in (("data.images", images), ("data.labels", labels)):
        if not folder.is_dir():
            raise UserError(f"{key}='{folder}' is not a folder; give the folder of the {key.removeprefix('data.')}")
    pictures = _scan(images, IMAGE_ENDINGS, image_suffix, "data.images")
    masks = _scan(labels, (".png",), label_suffix, "data.labels")
    found = []
    for key, chosen in (("data.train", train), ("data.test", test)):
        stems = _choose(chosen, pictures, masks, images, key)
        for stem in stems:
            if stem not in masks:
                expected = labels / f"{stem}{label_suffix}.png"
                raise UserError(
                    f"image '{pictures[stem]}' has no mask '{expected}'; add it, or take the image out of {key}"
                )
        found.append(Pairs(tuple(stems), tuple(pictures[s] for s in stems), tuple(masks[s] for s in stems)))
    return _disjoint(*found)


def with_saliency(pairs: Pairs, folder: str | Path) -> Pairs:
    """The same pairs with their saliency maps ``folder/NAME.png``.

    Raises:
        UserError: the folder or a map is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"data.saliency='{folder}' is not a folder; give the folder of the saliency PNGs")
    maps = _existing([folder / f"{stem}.png" for stem in pairs.stems], "saliency map", folder)
    return Pairs(pairs.stems, pairs.images, pairs.labels, maps)


def _scan(folder: Path, endings: Sequence[str], suffix: str, key: str) -> dict[str, Path]:
    """Stem (relative path without suffix and ending) -> file, in the order of the stems."""
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in names:
            base, ending = os.path.splitext(name)
            if ending.lower() not in endings or not base.endswith(suffix) or name.startswith("."):
                continue
            stem = (Path(place).relative_to(folder) / base.removesuffix(suffix)).as_posix()
            if stem in found:
                raise UserError(f"{key}: '{found[stem]}' and '{Path(place) / name}' have the same name; remove one")
            found[stem] = Path(place) / name
    if not found:
        wanted = f"*{suffix}{endings[0]}" if len(endings) == 1 else f"images (*{suffix}.jpg, .png, ...)"
        raise UserError(f"{key}='{folder}' holds no {wanted}; check the folder and the suffix")
    return dict(sorted(found.items()))


def _choose(
    chosen: str | Sequence[str], pictures: dict[str, Path], masks: dict[str, Path], images: Path, key: str
) -> list[str]:
    """The stems that the words of data.train or data.test name, each once."""
    stems: dict[str, None] = {}
    for word in [chosen] if isinstance(chosen, str) else chosen:
        if word.endswith(".txt"):
            if not Path(word).is_file():
                raise UserError(f"{key}: the list '{word}' does not exist; give a text file with one name per line")
            names = _read_list(Path(word))
            for name in names:
                if name not in pictures:
                    raise UserError(f"{key}: '{word}' names '{name}', which is not among the images of '{images}'")
            stems.update(dict.fromkeys(names))
            continue
        inside = (images / word).is_dir()
        prefix = f"{word.strip('/')}/"

        def fits(name: str, word: str = word, inside: bool = inside, prefix: str = prefix) -> bool:
            return (inside and (prefix in ("./", "/") or name.startswith(prefix))) or fnmatchcase(name, word)

        names = [name for name in pictures if fits(name)]
        if not names:
            raise UserError(f"{key}: no image of '{images}' fits '{word}'; write a list.txt, a sub-folder or a pattern")
        orphan = next((name for name in masks if name not in pictures and fits(name)), None)
        if orphan is not None:
            raise UserError(f"mask '{masks[orphan]}' has no image in '{images}'; add the image or remove the mask")
        stems.update(dict.fromkeys(names))
    return list(stems)


def _read_list(path: Path) -> list[str]:
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the list '{path}': {error}; it must be a text file with a name per line"
        ) from error
    names = [line[0] for line in words if line]
    # Lists of other tools hold paths with endings: /JPEGImages/2007_000032.jpg /SegmentationClass/2007_000032.png
    if any(name.startswith("/") for name in names):
        raise UserError(f"the list '{path}' holds paths ('{names[0]}'); write names without folder and ending")
    stems = list(dict.fromkeys(name.removesuffix(".jpg").removesuffix(".png") for name in names))
    if not stems:
        raise UserError(f"the list '{path}' is empty; write one image name per line")
    return stems


def _existing(paths: Sequence[Path], what: str, origin: Path) -> tuple[Path, ...]:
    """The paths, once every one is a file; folders are listed once, since 10,000 single checks are slow on networks."""
    listed: dict[Path, set[str]] = {}
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
    missing = [path for path in paths if path.name not in listed[path.parent]]
    if missing:
        raise UserError(
            f"{what} '{missing[0]}' is missing ({len(missing)} of {len(paths)}, named by '{origin}'); "
            "add it or remove its name"
        )
    return tuple(paths)


def _disjoint(train: Pairs, test: Pairs) -> tuple[Pairs, Pairs]:
    both = sorted(set(train.stems) & set(test.stems))
    if both:
        raise UserError(
            f"'{both[0]}' is in both data.train and data.test ({len(both)} such images); an image finds itself, "
            "keep the sets apart"
        )
    return train, test
