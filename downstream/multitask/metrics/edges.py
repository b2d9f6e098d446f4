"""odsF: the F-measure of boundaries at the best threshold for the data set, without MATLAB.

The BSDS benchmark (Martin et al., PAMI 2004; Arbelaez et al., PAMI 2011), as the multi-task papers use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .boundary_matching import BoundaryMatcher
from .nms import thin_edges
from .streaming import StreamingMetric, check_sizes
from .thinning import thin

MAX_DISTANCE = {"pascal": 0.0075, "bsds": 0.0075, "nyud": 0.011}


def benchmark_thresholds(count: int = 99) -> tuple[float, ...]:
    """Thresholds of the BSDS benchmark: ``count`` equal steps between 0 and 1, both left out."""
    return tuple(np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count).tolist())


# Those of the multi-task papers: the benchmark's 99 and one more at each end.
THRESHOLDS = (0.001, *benchmark_thresholds(99), 0.999)


class EdgeMetric(StreamingMetric):
    """Precision and recall of boundaries, counted over the data set at every threshold.

    Every image's edge map is made one pixel wide by non-maximum suppression, cut at each threshold, thinned, and
    matched to the annotations within ``max_distance`` times the image's diagonal. With several annotators a
    predicted pixel is right if any of them has it, and recall counts the pixels of all.

    Keys: ``odsf`` (F at the threshold that is best for the data set), its ``precision``, ``recall`` and
    ``threshold``, ``oisf`` (every image at its own best threshold) and ``ap`` (area below the curve).

    Args:
        max_distance: share of the diagonal; :data:`MAX_DISTANCE` has the published ones.
        thresholds: increasing, above 0.
        suppress: apply non-maximum suppression; off for boundaries that are thin already.
        smoothing: radius of the triangle filter before the edges' orientation is estimated; 0 for none.

    Raises:
        ValueError: thresholds that are not increasing or not above 0.
    """

    def __init__(
        self,
        max_distance: float,
        thresholds: Sequence[float] = THRESHOLDS,
        suppress: bool = True,
        smoothing: int = 4,
    ) -> None:
        self.max_distance = max_distance
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if not (np.diff(self.thresholds, prepend=0) > 0).all() or not len(self.thresholds):
            raise ValueError(f"thresholds must increase and be above 0, not {list(thresholds)}")
        self.suppress = suppress
        self.smoothing = smoothing
        curve = torch.zeros(len(self.thresholds), 4, dtype=torch.int64)
        sums = {"counts": curve, "best_counts": curve[0].clone(), "images": curve[0, 0].clone()}
        super().__init__(sums, (max_distance, tuple(self.thresholds.tolist()), suppress, smoothing))

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` (H, W) probabilities, ``values`` (A, H, W), boundary where above 0.5.

        A is the number of annotators, 1 for most data sets. Boundaries outside ``valid`` do not count.

        Raises:
            ValueError: sizes differ.
        """
        check_sizes(prediction, values, valid)
        mask = valid.cpu().numpy()
        strength = prediction.detach().double().nan_to_num(0.0).cpu().numpy()
        if self.suppress:
            strength = thin_edges(strength, self.smoothing)
        annotations = (values > 0.5).cpu().numpy() & mask
        counts = boundary_counts(np.where(mask, strength, 0), annotations, self.max_distance, self.thresholds)
        self.add(torch.from_numpy(counts))

    def add(self, counts: Tensor) -> None:
        """Add one image's :func:`boundary_counts`, which may come from another process."""
        self.sums["counts"] += counts
        # Of equally good thresholds the highest, as the reference tool.
        scores = f_measure(*precision_recall(counts.numpy()))
        self.sums["best_counts"] += counts[len(scores) - 1 - int(scores[::-1].argmax())]
        self.sums["images"] += 1

    def compute(self) -> dict[str, float]:
        """All as shares; the threshold as a probability. NaN before the first image."""
        keys = ("odsf", "precision", "recall", "threshold", "oisf", "ap")
        if not self.sums["images"]:
            return dict.fromkeys(keys, float("nan"))
        precision, recall = precision_recall(self.sums["counts"].numpy())
        best_f, best_precision, best_recall, threshold = best_f_measure(precision, recall, self.thresholds)
        ois = f_measure(*precision_recall(self.sums["best_counts"].numpy()))
        area = average_precision(precision, recall)
        return dict(zip(keys, (best_f, best_precision, best_recall, threshold, float(ois), area)))


def boundary_counts(
    strength: np.ndarray, annotations: np.ndarray, max_distance: float, thresholds: np.ndarray
) -> np.ndarray:
    """Matched and all boundary pixels of one image at every threshold.

    Args:
        strength: (H, W) boundary strength; a pixel is predicted where it is at least the threshold.
        annotations: (A, H, W) bool.
        max_distance: share of the diagonal within which pixels may be matched.
        thresholds: (T,) increasing, above 0.

    Returns:
        (T, 4) int64: annotated pixels matched, annotated pixels, predicted pixels matched, predicted pixels.
    """
    radius = max_distance * float(np.hypot(*strength.shape))
    matcher = BoundaryMatcher(annotations, strength >= thresholds[0], radius)
    counts = np.zeros((len(thresholds), 4), dtype=np.int64)
    previous = -1
    for index, threshold in enumerate(thresholds):
        above = strength >= threshold
        pixels = int(above.sum())
        if pixels == previous:  # maps only lose pixels as the threshold rises: this is the same map again
            counts[index] = counts[index - 1]
            continue
        previous = pixels
        boundary = thin(above)
        recalled, precise = matcher.count(boundary)
        counts[index] = recalled, matcher.annotated, precise, int(boundary.sum())
    return counts


def precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall from counts (..., 4) of :func:`boundary_counts`; 0 where there is nothing."""
    recalled, annotated, precise, predicted = np.moveaxis(counts.astype(np.float64), -1, 0)
    return precise / np.maximum(predicted, 1), recalled / np.maximum(annotated, 1)


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean, 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def best_f_measure(
    precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray
) -> tuple[float, float, float, float]:
    """Highest F on the curve, its precision, recall and threshold.

    Precision and recall are interpolated linearly between neighbouring thresholds, in 100 steps, as in the
    benchmark's ``maxF``.
    """
    at = np.concatenate([np.linspace(i - 1, i, 100) for i in range(1, len(thresholds))] or [np.zeros(1)])
    steps = np.arange(len(thresholds))
    precision, recall, thresholds = (np.interp(at, steps, curve) for curve in (precision, recall, thresholds))
    scores = f_measure(precision, recall)
    best = int(scores.argmax())
    return float(scores[best]), float(precision[best]), float(recall[best]), float(thresholds[best])


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area below the precision-recall curve in 100 steps of recall, as in the benchmark; 0 beyond what is measured."""
    recall, first = np.unique(recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    steps = np.linspace(0, 1, 101)
    return float(np.interp(steps, recall, precision[first], left=0, right=0).sum() * 0.01)
