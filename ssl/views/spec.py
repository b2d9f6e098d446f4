"""What views to make (`ViewSpec`) and what was drawn for a batch of images (`ViewParameters`)."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .crops import CropGroup

Constraint = Literal["overlap", "inside", "none"]
Augmentation = Literal["standard", "autoaugment", "mix"]

QUERY, ANCHOR = 0, 1  # positions of the two roles among the views
STANDARD, AUTOAUGMENT = 0, 1  # values of `ViewParameters.branch`


@dataclass(frozen=True)
class ViewSpec:
    """The views of one image: query (view 0), anchor (view 1), further large crops, then the small crops.

    Attributes:
        large: at least two crops; the first is a query, the second the anchor of the momentum encoder.
        small: small query crops, or None (or a count of 0) for the two-crop recipe.
        constraint: small crops `overlap` the anchor, lie `inside` it, or are unconstrained (`none`).
        min_overlap: for `overlap`, the smallest share of a small crop's area that lies in the anchor.
        max_iou: cap on the intersection over union of query and anchor, or None.
        augmentation: `standard` (jitter, grey, blur), `autoaugment`, or `mix`: a fair coin per view (A+). The anchor
            always gets the standard set.
    """

    large: CropGroup
    small: CropGroup | None
    constraint: Constraint = "overlap"
    min_overlap: float = 0.1
    max_iou: float | None = None
    augmentation: Augmentation = "mix"

    def __post_init__(self):
        if self.large.count < 2:
            raise UserError(f"large.count={self.large.count}: at least two large crops are needed (query and anchor)")
        if self.constraint not in get_args(Constraint):
            raise UserError(f"constraint={self.constraint}: choose one of {', '.join(get_args(Constraint))}")
        if self.augmentation not in get_args(Augmentation):
            raise UserError(f"augmentation={self.augmentation}: choose one of {', '.join(get_args(Augmentation))}")
        if not 0 <= self.min_overlap <= 1:
            raise UserError(f"min_overlap={self.min_overlap}: a share of the small crop's area, between 0 and 1")
        if self.max_iou is not None and not 0 <= self.max_iou <= 1:
            raise UserError(f"max_iou={self.max_iou}: between 0 and 1, or null for no cap")

    @property
    def groups(self) -> list[CropGroup]:
        """The crop groups in view order; the second is absent when there are no small crops."""
        return [self.large, self.small] if self.num_small else [self.large]

    @property
    def num_small(self) -> int:
        """Small crops per image."""
        return self.small.count if self.small is not None else 0

    @property
    def num_views(self) -> int:
        """Views per image, the anchor included."""
        return self.large.count + self.num_small

    @property
    def num_queries(self) -> int:
        """Views per image that go through the query encoder: all but the anchor."""
        return self.num_views - 1

    @property
    def anchor(self) -> int:
        """Position of the anchor among the views."""
        return ANCHOR


@dataclass(frozen=True)
class ViewParameters:
    """Everything random about the V views of B images, drawn before any pixel is touched. Tensors on the CPU.

    Attributes:
        boxes: (B, V, 4) int64 top, left, height, width in pixels of the image.
        fallback: (B, V) bool, the box does not meet its constraint (`constraint`, `max_iou`) after all tries.
        flip: (B, V) bool, mirrored horizontally.
        branch: (B, V) uint8, 0 standard, 1 AutoAugment. Of the fields below, the first five are used by the standard
            branch, the last three by AutoAugment.
        jitter: (B, V) bool, colour jitter is applied.
        order: (B, V, 4) uint8, the position-th jitter operation (0 brightness, 1 contrast, 2 saturation, 3 hue).
        factors: (B, V, 4) float32, factors of brightness, contrast, saturation; hue shift in turns.
        grey: (B, V) bool, converted to grey.
        sigma: (B, V) float32, standard deviation of the Gaussian blur in pixels of the view; 0 for none.
        policy: (B, V) uint8, index of the AutoAugment sub-policy.
        applied: (B, V, 2) bool, which of the two operations of the sub-policy are carried out.
        magnitudes: (B, V, 2) float32, their magnitudes with the sign that was drawn.
    """

    boxes: Tensor
    fallback: Tensor
    flip: Tensor
    branch: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    sigma: Tensor
    policy: Tensor
    applied: Tensor
    magnitudes: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows) -> "ViewParameters":
        """Parameters of some of the images (a slice or an index tensor)."""
        return ViewParameters(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ViewParameters":
        """Itself: the renderer plans on the host and copies to the device only what the pixels need, in one piece."""
        return self

    def pin_memory(self) -> "ViewParameters":
        """Itself, see `to`."""
        return self

    def __reduce__(self):
        # As arrays: a loader's worker would otherwise open one shared-memory file per tensor and batch.
        return _from_arrays, tuple(getattr(self, field.name).numpy() for field in fields(self))


def _from_arrays(*arrays) -> ViewParameters:
    return ViewParameters(*map(torch.from_numpy, arrays))
