"""kNN probe: classify held-out images by their nearest labelled neighbours in frozen feature space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from polyscene.runtime.errors import UserError
from polyscene.runtime.features import image_features
from polyscene.runtime.knn import accuracy, knn_predict


@dataclass(frozen=True)
class LabelledImages:
    """Image files with a class number each.

    Attributes:
        paths: files.
        labels: (N,) int64.
        class_names: name of every class number.
    """

    paths: Sequence[Path]
    labels: Tensor
    class_names: Sequence[str]


def align_classes(test: LabelledImages, train: LabelledImages) -> LabelledImages:
    """The test images with the training set's class numbers.

    Raises:
        UserError: a test class that the training images do not have.
    """
    number = {name: i for i, name in enumerate(train.class_names)}
    unknown = [name for name in test.class_names if name not in number]
    if unknown:
        raise UserError(
            f"data.test has the class '{unknown[0]}' ({len(unknown)} such), which data.train lacks; "
            "both need the same sub-folders"
        )
    table = torch.tensor([number[name] for name in test.class_names])
    return LabelledImages(test.paths, table[test.labels], train.class_names)


def knn_probe(
    backbone: nn.Module,
    train: LabelledImages,
    test: LabelledImages,
    *,
    k: int,
    temperature: float,
    resize: int,
    crop: int,
    device: torch.device,
    workers: int,
) -> float:
    """Accuracy in [0, 1] of a weighted kNN vote over frozen, average-pooled, L2-normalised features.

    Args:
        backbone: (N, 3, H, W) -> (N, C), on ``device``.
        train: images that vote.
        test: images that are classified, with the training set's class numbers.
        k: neighbours that vote.
        temperature: of their weights (0.07 by convention).
        resize: shorter side, pixels.
        crop: side of the central crop, pixels.
        device: where to compute.
        workers: processes that decode.
    """
    bank, _ = image_features(backbone, train.paths, resize=resize, crop=crop, device=device, workers=workers)
    queries, _ = image_features(backbone, test.paths, resize=resize, crop=crop, device=device, workers=workers)
    return accuracy(knn_predict(queries, bank, train.labels, k=k, temperature=temperature), test.labels)
