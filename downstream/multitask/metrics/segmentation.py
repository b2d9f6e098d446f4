"""Mean intersection over union of semantic segmentation and human parts."""

from __future__ import annotations

import torch
from torch import Tensor

from .streaming import StreamingMetric, check_sizes, ratio

PARTS_CLASSES = 7


class SegmentationMetric(StreamingMetric):
    """IoU = TP / (TP + FP + FN) of every class, counted over the whole data set, and its mean over classes.

    Pixels that are not valid (void) are left out. A class that occurs neither in the labels nor in the predictions
    has no IoU and is left out of the mean; in the published splits all classes occur. Human parts are the same with
    :data:`PARTS_CLASSES`, background included.

    Keys: ``miou``, ``pixel_accuracy``.

    Args:
        classes: number C of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__({"confusion": torch.zeros(classes, classes, dtype=torch.int64)}, (classes,))
        self.classes = classes

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` and ``values`` (H, W) integers in [0, C).

        Raises:
            ValueError: a valid pixel has another class, or sizes differ.
        """
        check_sizes(prediction, values, valid)
        truth, guess = values[valid].long(), prediction[valid].long()
        for name, labels in (("values", truth), ("prediction", guess)):
            if labels.numel() and (labels.min() < 0 or labels.max() >= self.classes):
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"{name} of valid pixels must be classes 0 to {self.classes - 1}, not {found}")
        pairs = torch.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.sums["confusion"] += pairs.view(self.classes, self.classes).cpu()

    def class_iou(self) -> list[float]:
        """IoU of every class; NaN for one that occurs neither in the labels nor in the predictions."""
        confusion = self.sums["confusion"]
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        return [ratio(hit, total) for hit, total in zip(hits.tolist(), union.tolist())]

    def compute(self) -> dict[str, float]:
        """Mean IoU and the share of valid pixels with the right class."""
        occurring = [iou for iou in self.class_iou() if iou == iou]
        confusion = self.sums["confusion"]
        return {
            "miou": ratio(sum(occurring), len(occurring)),
            "pixel_accuracy": ratio(confusion.trace(), confusion.sum()),
        }
