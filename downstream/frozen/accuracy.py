"""Accuracies of a classifier, whole and class by class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def accuracy_by_class(predictions: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Class name -> share of its images that are classified correctly; classes without images are left out.

    Args:
        predictions: (M,) int64.
        labels: (M,) int64.
        class_names: name of every class number.
    """
    shares = {}
    for number, name in enumerate(class_names):
        members = labels == number
        if members.any():
            shares[name] = float((predictions[members] == number).double().mean())
    return shares
