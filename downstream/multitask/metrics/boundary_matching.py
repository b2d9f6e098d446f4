"""Matching predicted to annotated boundary pixels, as the BSDS benchmark counts them (Martin et al., PAMI 2004)."""

from __future__ import annotations

import numpy as np

from .bipartite_matching import greedy_matching, maximum_matching


class BoundaryMatcher:
    """Counts matched boundary pixels of predictions for one image, against all its annotators.

    A predicted and an annotated pixel may be matched if they lie within ``radius``; each is used at most once per
    annotator, and as many as possible are matched. The reference solver looks for the shortest of these matchings;
    only the union over annotators depends on which one it is, and near pixels are matched first here.

    The pairs within reach are found once for all thresholds.

    Args:
        annotations: (A, H, W) bool, boundaries of A annotators.
        candidates: (H, W) bool, all pixels that any prediction may contain.
        radius: largest distance in pixels (the benchmark's ``max_dist`` times the image's diagonal).
    """

    def __init__(self, annotations: np.ndarray, candidates: np.ndarray, radius: float) -> None:
        annotators, row, column = np.nonzero(annotations)
        self.annotators = len(annotations)
        self.annotated = len(annotators)
        reach = int(radius)
        width = candidates.shape[1] + 2 * reach
        place = ((row + reach) * width + column + reach).astype(np.int32)
        possible = np.pad(candidates, reach).reshape(-1)
        self.reach = reach
        found = [np.flatnonzero(possible[place + step]) for step in _steps(radius, width)]
        self.group_ends = np.cumsum([len(group) for group in found])
        # By distance: pair e joins annotated pixel pixel[e] with the predicted one at place partner[e].
        self.pixel = np.concatenate(found).astype(np.int32)
        offsets = np.repeat(_steps(radius, width), [len(group) for group in found])
        self.partner = place[self.pixel] + offsets
        self.annotator = annotators.astype(np.int32)
        self.by_pixel = np.argsort(self.pixel, kind="stable")

    def count(self, boundary: np.ndarray) -> tuple[int, int]:
        """Match a boundary map (H, W) bool, a part of the candidates, with every annotator.

        Returns:
            annotated pixels that found a partner, over all annotators; predicted pixels that found one with any.
        """
        flat = np.pad(boundary, self.reach).reshape(-1)
        predicted = int(flat.sum())
        if not predicted or not self.annotated:
            return 0, 0
        number = np.zeros(len(flat), dtype=np.int32)
        number[flat] = np.arange(predicted, dtype=np.int32)
        kept = flat[self.partner]
        kept_before = np.concatenate([[0], np.cumsum(kept)])
        # Every annotator gets its own copy of the predicted pixels, so one matching serves all.
        copies = number[self.partner] + predicted * self.annotator[self.pixel]
        shape = (self.annotated, predicted * self.annotators)
        ends = kept_before[self.group_ends]
        pixel_mate, copy_mate = greedy_matching(self.pixel[kept], copies[kept], ends, shape)
        in_order = self.by_pixel[kept[self.by_pixel]]
        starts = np.zeros(self.annotated + 1, dtype=np.int32)
        np.cumsum(np.bincount(self.pixel[kept], minlength=self.annotated), out=starts[1:])
        maximum_matching(starts, copies[in_order], pixel_mate, copy_mate)
        matched = (copy_mate >= 0).reshape(self.annotators, predicted)
        return int(matched.sum()), int(matched.any(axis=0).sum())


def _steps(radius: float, width: int) -> np.ndarray:
    """All steps of at most ``radius`` in a flattened image of that width, nearest first: (K,) int32."""
    reach = np.arange(-int(radius), int(radius) + 1)
    squared = reach[:, None] ** 2 + reach**2
    down, right = np.nonzero(squared <= radius**2)
    nearest = np.argsort(squared[down, right], kind="stable")
    return (reach[down] * width + reach[right])[nearest].astype(np.int32)
