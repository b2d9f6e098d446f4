"""Labelled images of frozen evaluation, with one class per image or several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .images import ImageFiles, ImageObjects


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with what is seen in them.

    Attributes:
        images: files or objects, in a fixed order.
        targets: (N,) int64 class numbers; or, where an image may have several classes, (N, K) int8 of 1 (has it), -1
            (has it not) and 0 (neither: nothing is trained or judged on this image for this class).
        class_names: (K,) name of every class number.
    """

    images: ImageFiles | ImageObjects
    targets: Tensor
    class_names: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.targets.dim() == 2

    def one_vs_rest(self) -> Tensor:
        """(N, K) int8 of 1, -1 and 0, whatever the kind of labels."""
        if self.multi_label:
            return self.targets
        return torch.nn.functional.one_hot(self.targets, len(self.class_names)).to(torch.int8) * 2 - 1


def align_classes(test: LabelledImages, train: LabelledImages) -> LabelledImages:
    """The test images with the training set's class numbers; of a class they lack, no image has it.

    Raises:
        UserError: a test class that the training images do not have.
    """
    number = {name: i for i, name in enumerate(train.class_names)}
    unknown = [name for name in test.class_names if name not in number]
    if unknown:
        raise UserError(
            f"the test images have the class '{unknown[0]}' ({len(unknown)} such), which the training images lack; "
            "both need the same classes"
        )
    table = torch.tensor([number[name] for name in test.class_names], dtype=torch.int64)
    if not test.multi_label:
        return LabelledImages(test.images, table[test.targets], train.class_names)
    targets = torch.full((len(test.images), len(train.class_names)), -1, dtype=torch.int8)
    targets[:, table] = test.targets
    return LabelledImages(test.images, targets, train.class_names)
