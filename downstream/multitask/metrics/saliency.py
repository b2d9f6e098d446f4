"""Saliency: intersection over union or F-measure of the foreground, at the best threshold for the data set."""

from __future__ import annotations

import torch
from torch import Tensor

from .streaming import StreamingMetric, check_sizes, ratio

PROTOCOLS = ("rcm", "survey", "atrc")
IOU_THRESHOLDS = 15
F_THRESHOLDS = 19
BETA_SQUARED = 0.3


class SaliencyMetric(StreamingMetric):
    """The two published protocols of saliency estimation.

    ``rcm`` and ``survey``: IoU of the foreground in every image (1 where neither has any), averaged over images, at
    thresholds ``linspace(.2, .9, 15)`` (foreground: probability > threshold); the best of the averages.
    ``atrc``: precision and recall of the foreground over all pixels of the data set at thresholds .05, .1, ..., .95
    (probability >= threshold), the best F-measure with beta^2 = 0.3.

    Keys: ``iou`` and ``threshold``, or for ``atrc`` ``max_f`` and ``threshold``.

    Args:
        protocol: one of :data:`PROTOCOLS`.

    Raises:
        ValueError: an unknown protocol.
    """

    def __init__(self, protocol: str) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown saliency protocol '{protocol}', choose from {', '.join(PROTOCOLS)}")
        self.protocol = protocol
        if protocol == "atrc":
            self.thresholds = torch.arange(1, F_THRESHOLDS + 1, dtype=torch.float64) / (F_THRESHOLDS + 1)
            counts = {key: torch.zeros(F_THRESHOLDS, dtype=torch.int64) for key in ("hits", "predicted", "actual")}
            super().__init__(counts, (protocol,))
        else:
            self.thresholds = torch.linspace(0.2, 0.9, IOU_THRESHOLDS, dtype=torch.float64)
            sums = {"iou": torch.zeros_like(self.thresholds), "images": torch.zeros((), dtype=torch.int64)}
            super().__init__(sums, (protocol,))

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` (H, W) probabilities, ``values`` (1, H, W), foreground where above 0.5.

        Raises:
            ValueError: sizes differ.
        """
        check_sizes(prediction, values, valid)
        probabilities = prediction[valid].double().nan_to_num(0.0)
        actual = values[0][valid] > 0.5
        if self.protocol != "atrc" and not actual.numel():
            return
        thresholds = self.thresholds.to(probabilities.device)
        # Counting the thresholds below each pixel once is much cheaper than comparing all pixels with each threshold.
        passed = torch.bucketize(probabilities, thresholds, right=self.protocol == "atrc")
        predicted = _at_least(passed, len(thresholds)).cpu()
        hits = _at_least(passed[actual], len(thresholds)).cpu()
        positives = int(actual.sum())
        if self.protocol == "atrc":
            self.sums["hits"] += hits
            self.sums["predicted"] += predicted
            self.sums["actual"] += positives
            return
        union = (predicted + positives - hits).double()
        self.sums["iou"] += torch.where(union > 0, hits / union.clamp(min=1), 1.0)
        self.sums["images"] += 1

    def compute(self) -> dict[str, float]:
        """The best value and its threshold."""
        if self.protocol == "atrc":
            key, scores = "max_f", self._f_measure()
        else:
            key = "iou"
            scores = torch.tensor([ratio(total, self.sums["images"]) for total in self.sums["iou"]])
        best = int(scores.argmax())
        return {key: float(scores[best]), "threshold": float(self.thresholds[best])}

    def _f_measure(self) -> Tensor:
        hits, predicted, actual = (self.sums[key].double() for key in ("hits", "predicted", "actual"))
        if not (predicted + actual).any():
            return torch.full_like(hits, float("nan"))
        # (1 + b) P R / (b P + R) with P = hits / predicted and R = hits / actual; 0 where nothing is hit.
        return (1 + BETA_SQUARED) * hits / (BETA_SQUARED * actual + predicted).clamp(min=1e-12)


def _at_least(passed: Tensor, thresholds: int) -> Tensor:
    """(thresholds,) how many pixels passed the first, the second, ... threshold, from how many each one passed."""
    counts = torch.bincount(passed, minlength=thresholds + 1)
    return counts.flip(0).cumsum(0).flip(0)[1:]
