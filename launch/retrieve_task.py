"""What ``polyscene retrieve`` measures: its values checked, its files listed, its classes settled."""

from __future__ import annotations

from dataclasses import dataclass

from polyscene.downstream.scenes.classes import VOC_NAMES
from polyscene.downstream.segments.data import (
    VOC_IGNORE,
    VOC_SUBSET,
    LabelScheme,
    Pairs,
    image_folder,
    voc2012,
    with_saliency,
)
from polyscene.runtime.errors import UserError

from .limits import check_at_least
from .retrieve_config import RetrieveConfig, RetrieveDataConfig

MOST_CLUSTERS = 254  # region maps hold bytes, and one value stands for no region


@dataclass(frozen=True)
class Task:
    """What is measured, whatever the backbone.

    Attributes:
        bank_pairs: training images.
        test_pairs: images that are segmented.
        scheme: classes and void values.
        subset: classes of the second mean; empty for none.
        background: class of pixels outside all regions (protocol saliency), else None.
        colours_background: class that pictures show in black, or None.
    """

    bank_pairs: Pairs
    test_pairs: Pairs
    scheme: LabelScheme
    subset: tuple[int, ...]
    background: int | None
    colours_background: int | None


def check_values(config: RetrieveConfig) -> None:
    """Refuse values that make no sense, before anything is read.

    Raises:
        UserError: naming the key.
    """
    limits = [
        ("batch_size", config.batch_size, 1),
        ("workers", config.workers, 0),
        ("picture_rows", config.picture_rows, 0),
    ]
    check_at_least(limits)
    if not 2 <= config.clusters <= MOST_CLUSTERS:
        raise UserError(f"clusters={config.clusters} must be between 2 and {MOST_CLUSTERS}")
    stride = config.output_stride
    if any(side < stride or side % stride for side in config.size):
        raise UserError(
            f"size={list(config.size)} must be positive multiples of output_stride={stride}, "
            f"for example [{max(1, config.size[0] // stride) * stride}, {max(1, config.size[1] // stride) * stride}]"
        )
    if config.protocol == "saliency" and config.data.saliency is None:
        raise UserError("protocol=saliency needs data.saliency, the folder of the saliency PNGs")


def open_task(config: RetrieveConfig) -> Task:
    """List the files, check that all exist, and settle the classes.

    Raises:
        UserError: a key that the data needs is absent, or does not fit; files are missing.
    """
    data = config.data
    voc = data.kind == "voc2012"
    names = data.classes or (VOC_NAMES if voc else None)
    if names is None:
        raise UserError("data.classes is required for kind=folder: the class names in the order of the label values")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"data.classes={list(names)} must be at least two different names")
    ignore = (data.ignore,) if isinstance(data.ignore, int) else data.ignore
    if ignore is None:
        ignore = VOC_IGNORE if voc else ()
    if any(not 0 <= value <= 65535 for value in ignore):
        raise UserError(f"data.ignore={list(ignore)}: label values are 0 to 65535")
    standard = voc and data.classes is None
    subset = data.subset_classes if data.subset_classes is not None else (VOC_SUBSET if standard else ())
    unknown = next((name for name in subset if name not in names), None)
    if unknown is not None:
        raise UserError(f"data.subset_classes: '{unknown}' is not in data.classes ({', '.join(names)})")
    background = 0 if data.background is None and standard else data.background
    if background is not None and not 0 <= background < len(names):
        raise UserError(f"data.background={background} is not the value of a class; it must be 0 to {len(names) - 1}")
    salient = config.protocol == "saliency"
    if salient and background is None:
        raise UserError("protocol=saliency needs data.background, the label value of everything not salient")
    pairs = _pairs(data)
    if salient:
        pairs = [with_saliency(p, data.saliency) for p in pairs]
    scheme = LabelScheme(tuple(names), tuple(ignore))
    return Task(*pairs, scheme, tuple(names.index(n) for n in subset), background if salient else None, background)


def _pairs(data: RetrieveDataConfig) -> tuple[Pairs, Pairs]:
    needed = ("root",) if data.kind == "voc2012" else ("images", "labels", "train", "test")
    for key in needed:
        if getattr(data, key) is None:
            raise UserError(f"data.{key} is required for kind={data.kind}; add data.{key}=VALUE")
    if data.kind == "voc2012":
        for key in ("train", "test"):
            if isinstance(getattr(data, key), tuple):
                raise UserError(f"data.{key}: give one list of ImageSets/Segmentation for kind=voc2012, such as train")
        return voc2012(data.root, data.train, data.test)
    return image_folder(
        data.images,
        data.labels,
        data.train,
        data.test,
        image_suffix=data.image_suffix,
        label_suffix=data.label_suffix,
    )
