"""Accuracy of image-level classification."""

from __future__ import annotations

import torch
from torch import Tensor

from .streaming import StreamingMetric, check_sizes, ratio


class ClassificationMetric(StreamingMetric):
    """Share of the images with the right class (top-1), and the mean over classes of that share.

    Images that are not valid (without label) are left out, and so are classes that no image has from the mean.

    Keys: ``accuracy``, ``mean_class_accuracy``.

    Args:
        classes: number C of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__({"confusion": torch.zeros(classes, classes, dtype=torch.int64)}, (classes,))
        self.classes = classes

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` and ``values`` (1, 1) integers in [0, C).

        Raises:
            ValueError: another class or size.
        """
        check_sizes(prediction, values, valid)
        if valid.numel() != 1:
            raise ValueError(f"an image has one class, not a map of {tuple(valid.shape)}")
        if not bool(valid):
            return
        truth, guess = int(values), int(prediction)
        if not (0 <= truth < self.classes and 0 <= guess < self.classes):
            raise ValueError(f"classes must be 0 to {self.classes - 1}, not {truth} (values) and {guess} (prediction)")
        self.sums["confusion"][truth, guess] += 1

    def class_accuracy(self) -> list[float]:
        """Share of every class's images that are found; NaN for a class that no image has."""
        confusion = self.sums["confusion"]
        return [ratio(hit, total) for hit, total in zip(confusion.diagonal().tolist(), confusion.sum(1).tolist())]

    def compute(self) -> dict[str, float]:
        """Both accuracies, shares in [0, 1]."""
        confusion = self.sums["confusion"]
        occurring = [share for share in self.class_accuracy() if share == share]
        return {
            "accuracy": ratio(confusion.trace(), confusion.sum()),
            "mean_class_accuracy": ratio(sum(occurring), len(occurring)),
        }
