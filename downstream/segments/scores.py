"""Confusion matrices from regions, and intersection over union from confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def region_confusion(
    histograms: np.ndarray, predictions: np.ndarray, rest: np.ndarray, background: int | None = None
) -> np.ndarray:
    """Confusion matrix of pixels when every region gets one label; void pixels are left out.

    Counting pixels of whole regions gives exactly what comparing label maps pixel by pixel gives.

    Args:
        histograms: (R, C + 1) pixels per true class and void in every region.
        predictions: (R,) predicted classes.
        rest: (C + 1,) pixels outside all regions, predicted as ``background``.
        background: a class; needed where ``rest`` is not zero.

    Returns:
        (C, C) int64, true class by predicted class.

    Raises:
        ValueError: pixels outside all regions without a background class.
    """
    classes = histograms.shape[1] - 1
    confusion = np.zeros((classes, classes), dtype=np.int64)
    for label in range(classes):
        confusion[:, label] = histograms[predictions == label, :classes].sum(axis=0)
    return _with_rest(confusion, rest, background)


def guessing_confusion(
    histograms: np.ndarray, bank_labels: np.ndarray, rest: np.ndarray, background: int | None = None
) -> np.ndarray:
    """Expected confusion matrix (C, C) float64 when every region gets the label of a bank region drawn at random.

    Arguments as in :func:`region_confusion`, and ``bank_labels`` (M,).
    """
    classes = histograms.shape[1] - 1
    prior = np.bincount(bank_labels, minlength=classes) / len(bank_labels)
    return _with_rest(np.outer(histograms[:, :classes].sum(axis=0), prior), rest, background)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union TP / (TP + FP + FN) of every class: (C,) float64.

    NaN for a class that occurs neither in the ground truth nor in the predictions.
    """
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(iou: np.ndarray, classes: Sequence[int] | None = None) -> float | None:
    """Mean over ``classes`` (all by default), leaving out those that are NaN; None if all are."""
    values = iou if classes is None else iou[list(classes)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def pixel_accuracy(confusion: np.ndarray) -> float | None:
    """Share of the non-void pixels with the right label; None if there are no such pixels."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else None


def _with_rest(confusion: np.ndarray, rest: np.ndarray, background: int | None) -> np.ndarray:
    if background is not None:
        confusion[:, background] += rest[:-1].astype(confusion.dtype)
    elif rest.any():
        raise ValueError("pixels outside all regions need a background class")
    return confusion
