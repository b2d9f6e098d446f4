"""Segment retrieval: regions of the test images take the label of the nearest region of the bank (thesis table 7.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyscene.runtime.errors import UserError

from .extract import RegionSet
from .scores import guessing_confusion, region_confusion
from .search import nearest_regions


@dataclass(frozen=True)
class Retrieval:
    """What a retrieval found.

    Attributes:
        predictions: (R,) int64, the label given to every test region.
        similarities: (R,) float32, inner product with the bank region that gave it.
        confusion: (C, C) int64 pixels, true class by predicted class.
        guessing: (C, C) float64, the expectation of it for labels of bank regions drawn at random.
    """

    predictions: np.ndarray
    similarities: np.ndarray
    confusion: np.ndarray
    guessing: np.ndarray


def check_bank(bank: RegionSet, names: tuple[str, ...]) -> None:
    """Refuse a bank that cannot tell anything.

    Raises:
        UserError: no region has a label, or all have the same.
    """
    present = np.unique(bank.labels)
    if not len(present):
        raise UserError(
            "no region of the training images has a label (all void, or only background under protocol=saliency); "
            "check data.ignore and data.labels"
        )
    if len(present) == 1:
        raise UserError(
            f"all {len(bank.labels)} training regions are '{names[present[0]]}', so every answer would be that; "
            "add training images of other classes, or check data.labels"
        )


def retrieve_labels(bank: RegionSet, test: RegionSet, background: int | None = None) -> Retrieval:
    """Label every test region like its nearest bank region, and count pixels.

    Args:
        bank: labelled regions only.
        test: regions to label.
        background: class of the pixels that no region covers, where there are such.
    """
    predictions = np.zeros(len(test.labels), dtype=np.int64)
    similarities = np.zeros(len(test.labels), dtype=np.float32)
    if len(predictions):
        scores, found = nearest_regions(test.embeddings, bank.embeddings)
        predictions, similarities = bank.labels[found], scores
    return Retrieval(
        predictions,
        similarities,
        region_confusion(test.histograms, predictions, test.rest, background),
        guessing_confusion(test.histograms, bank.labels, test.rest, background),
    )
