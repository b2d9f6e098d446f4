"""Keys of ``polyscene retrieve``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyscene.runtime.config import option, section

from .evaluation_config import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class RetrieveDataConfig:
    """Images with a class number per pixel."""

    kind: Literal["voc2012", "folder"] = option("voc2012", help="VOCdevkit/VOC2012, or any images + label PNGs")
    root: str | None = option(None, help="voc2012: folder that holds VOCdevkit")
    images: str | None = option(None, help="folder: of the images; sub-folders are searched")
    labels: str | None = option(None, help="folder: of the label PNGs, named like the images")
    image_suffix: str = option("", help="folder: end of image names that label names lack: _leftImg8bit")
    label_suffix: str = option("", help="folder: end of label names that image names lack: _gtFine_labelTrainIds")
    train: str | tuple[str, ...] | None = option(
        None, help="images of the bank: list.txt, sub-folder, or name patterns"
    )
    test: str | tuple[str, ...] | None = option(None, help="images that are segmented, written like train")
    saliency: str | None = option(
        None, help="protocol saliency: folder of saliency PNGs (0..255), named like the images"
    )
    classes: tuple[str, ...] | None = option(None, help="class names in the order of the label values; voc2012 knows")
    subset_classes: tuple[str, ...] | None = option(
        None, help="classes of a second mean; null: for voc2012 the usual 7"
    )
    ignore: int | tuple[int, ...] | None = option(None, help="label values that are void; voc2012: 255")
    background: int | None = option(None, help="label value of the background, for protocol saliency; voc2012: 0")


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(EvaluationConfig):
    """Segmentation by retrieving labelled regions."""

    protocol: Literal["kmeans", "saliency"] = option("kmeans", help="regions: k-means segments, or one salient mask")
    clusters: int = option(15, help="kmeans: segments per image")
    size: tuple[int, int] = option((512, 512), help="height and width that images and labels are resized to, pixels")
    output_stride: Literal[8, 16, 32] = option(8, help="image pixels per cell of the dilated layer4")
    batch_size: int = option(8, help="images per forward pass")
    picture_rows: int = option(6, help="queries in the picture; 0: no picture")
    data: RetrieveDataConfig = section(RetrieveDataConfig, help="images and labels")
