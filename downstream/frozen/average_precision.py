"""Average precision of a ranking, in the three ways that papers compute it."""

from __future__ import annotations

import numpy as np


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after every distinct score, from the highest down; equal scores enter together.

    Args:
        scores: (N,) finite numbers.
        positive: (N,) bool, at least one true.

    Returns:
        Precision (T,) and recall (T,), T distinct scores; the last recall is 1.

    Raises:
        ValueError: no positive, or another number of scores.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and positives {positive.shape} must be two vectors of one length")
    if not positive.any():
        raise ValueError("average precision needs at least one positive")
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[last_of_score]
    return hits / (last_of_score + 1), hits / positive.sum()


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall curve as steps, not interpolated: scikit-learn's ``average_precision_score``.

    Arguments and errors are those of :func:`precision_recall`.
    """
    precision, recall = precision_recall(scores, positive)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def interpolated_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision envelope, as VOC since 2010, VISSL and the thesis' published script compute it.

    The precision at a recall is the best at that recall or any higher one. Arguments and errors are those of
    :func:`precision_recall`.
    """
    precision, recall = precision_recall(scores, positive)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def eleven_point_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean of the envelope at recalls 0, 0.1, ..., 1: the measure of VOC 2007 (Everingham et al., 2010, section 4.2).

    Arguments and errors are those of :func:`precision_recall`.
    """
    precision, recall = precision_recall(scores, positive)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recalls and tenths are multiples of 0.1 / positives: half of that tells equal from less, whatever the rounding.
    slack = 0.05 / np.asarray(positive).sum()
    return float(np.mean([envelope[np.searchsorted(recall, k / 10 - slack)] for k in range(11)]))
