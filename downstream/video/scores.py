"""Region similarity J and boundary accuracy F of video object segmentation, as the DAVIS-2017 evaluation has them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016), section 5;
conventions of the official tool ``davis2017-evaluation`` (semi-supervised task).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from skimage.morphology import isotropic_dilation

BOUND_TH = 0.008
BINS = 4


class Statistics(NamedTuple):
    """What is said about one object in one video.

    Attributes:
        mean: of the scored frames.
        recall: share of frames that score above 0.5.
        decay: mean of the first quarter minus mean of the last quarter; lower is better.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two (H, W) bool masks; 1 where both are empty."""
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def boundary_accuracy(predicted: np.ndarray, truth: np.ndarray, bound_th: float = BOUND_TH) -> float:
    """F: harmonic mean of precision and recall of the boundary pixels of two (H, W) bool masks.

    A boundary pixel is found if one of the other mask lies within ``ceil(bound_th * diagonal)`` pixels. Both masks
    without boundary: 1. One without: 0.
    """
    radius = math.ceil(bound_th * math.hypot(*truth.shape))
    found, wanted = boundary_map(predicted), boundary_map(truth)
    if not found.any() and not wanted.any():
        return 1.0
    if not found.any() or not wanted.any():
        return 0.0
    # Only boundary pixels are looked up, so the rectangle that holds them all is enough.
    ys, xs = np.nonzero(found | wanted)
    box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    found, wanted = found[box], wanted[box]
    precision = np.count_nonzero(found & isotropic_dilation(wanted, radius)) / np.count_nonzero(found)
    recall = np.count_nonzero(wanted & isotropic_dilation(found, radius)) / np.count_nonzero(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Pixels of a (H, W) bool mask that differ from the one to the right, below, or right below: one pixel wide.

    Pixels of the last row and column have only one such neighbour, the last pixel none, so that a mask has no boundary
    along the picture's edge.
    """
    boundary = np.zeros_like(mask)
    right, below = mask[:, :-1] ^ mask[:, 1:], mask[:-1] ^ mask[1:]
    boundary[:, :-1] |= right
    boundary[:-1] |= below
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def statistics(values: Sequence[float]) -> Statistics:
    """Mean, recall and decay of one object's scores over the scored frames, of which there is at least one."""
    scores = np.asarray(values, dtype=np.float64)
    # Five edges from the first to the last frame, rounded half up; neighbouring bins share the frame at their edge.
    edges = np.floor(np.linspace(1, len(scores), BINS + 1) + 0.5 + 1e-10).astype(int) - 1
    first, last = scores[edges[0] : edges[1] + 1], scores[edges[-2] : edges[-1] + 1]
    return Statistics(float(scores.mean()), float((scores > 0.5).mean()), float(first.mean() - last.mean()))


def score_video(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], labels: Sequence[int]
) -> dict[int, dict[str, float]]:
    """All numbers of every object of a video; the first frame, which was given, and the last are not scored.

    Args:
        predicted: (H, W) label maps of all frames.
        truth: the same of the annotation.
        labels: the objects.

    Returns:
        label -> ``jf_mean``, ``j_mean``, ``j_recall``, ``j_decay``, ``f_mean``, ``f_recall``, ``f_decay``, as shares.
    """
    table = {}
    for label in labels:
        pairs = [(p == label, t == label) for p, t in zip(predicted[1:-1], truth[1:-1], strict=True)]
        j = statistics([region_similarity(p, t) for p, t in pairs])
        f = statistics([boundary_accuracy(p, t) for p, t in pairs])
        numbers = {"jf_mean": (j.mean + f.mean) / 2}
        numbers |= {f"j_{name}": value for name, value in j._asdict().items()}
        numbers |= {f"f_{name}": value for name, value in f._asdict().items()}
        table[label] = numbers
    return table
