"""Losses of dense tasks: means over valid pixels, in float32 also under autocast, zero where nothing is valid.

All take the network's raw output (before `TaskSpec.activate`) at the size of the target. None of them waits for the
device: invalid pixels are masked, never selected. A batch without valid pixels gives 0 with a gradient of zeros, so
that every parameter takes part in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_WIDE = 16
"""Classes that fill the widest vectors of a processor. With fewer, a softmax over rows is slower than across maps."""


def cross_entropy(output: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """Softmax cross-entropy in nats: segmentation, human parts.

    Args:
        output: (N, C, H, W) logits.
        values: (N, H, W) int64 classes, 0 to C - 1 where valid, anything elsewhere.
        valid: (N, H, W) bool.

    Returns:
        Scalar float32, the mean over the valid pixels of the batch.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(output, values.unsqueeze(1).expand(-1, output.shape[1], -1, -1), valid)
    with torch.autocast(output.device.type, enabled=False):
        logits, classes = output.float(), torch.where(valid, values, 0)
        if logits.shape[1] >= _WIDE and logits.is_contiguous(memory_format=torch.channels_last):
            # The classes of a pixel lie side by side: as rows they need no copy into another layout and back.
            logits, classes = logits.permute(0, 2, 3, 1).flatten(0, 2), classes.flatten()
        return _mean(F.cross_entropy(logits, classes, reduction="none").view(valid.shape), valid)


def balanced_bce(output: Tensor, values: Tensor, valid: Tensor, positive_weight: float | None = None) -> Tensor:
    """Binary cross-entropy with weight w on positive and 1 - w on negative pixels.

    Edges: a fixed w = 0.95 (thesis section 5.4). Saliency: ``positive_weight=None``, that is w = the share of
    negatives among the valid pixels of the batch, as in HED (Xie and Tu, ICCV 2015, eq. 2). Targets count as positive
    from 0.5 on.

    Args:
        output: (N, 1, H, W) logits.
        values: (N, 1, H, W) floats in [0, 1] where valid.
        valid: (N, H, W) bool.
        positive_weight: w in [0, 1]; None balances the classes of the batch.

    Returns:
        Scalar float32: the weighted sum divided by the number of valid pixels.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(output, values, valid)
    mask = valid.unsqueeze(1)
    with torch.autocast(output.device.type, enabled=False):
        positive = (mask & (values >= 0.5)).float()
        negative = mask.float() - positive
        if positive_weight is None:
            weight = negative.sum() / mask.sum().clamp(min=1)
        else:
            weight = positive_weight
        logits = output.float()
        loss = weight * positive * F.softplus(-logits) + (1 - weight) * negative * F.softplus(logits)
        return _mean(loss, mask)


def normals_l1(output: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """L1 distance between the output, scaled to unit length, and the true unit normals.

    Args:
        output: (N, 3, H, W), any length.
        values: (N, 3, H, W) unit vectors where valid.
        valid: (N, H, W) bool.

    Returns:
        Scalar float32: the mean over valid pixels and the three components.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(output, values, valid)
    mask = valid.unsqueeze(1).expand_as(values)
    with torch.autocast(output.device.type, enabled=False):
        unit = F.normalize(output.float(), dim=1, eps=1e-6)
        return _mean((unit - torch.where(mask, values, 0)).abs(), mask)


def depth_l1(output: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """Absolute depth error in metres.

    Args:
        output: (N, 1, H, W) metres.
        values: (N, 1, H, W) metres where valid.
        valid: (N, H, W) bool.

    Returns:
        Scalar float32: the mean over the valid pixels of the batch.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(output, values, valid)
    mask = valid.unsqueeze(1)
    with torch.autocast(output.device.type, enabled=False):
        return _mean((output.float() - torch.where(mask, values, 0)).abs(), mask)


def _mean(loss: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, loss, 0).sum() / mask.sum().clamp(min=1)


def _check(output: Tensor, values: Tensor, valid: Tensor) -> None:
    # Without this, (N, 1, H, W) against (N, H, W) would broadcast to (N, N, H, W) and train on nonsense.
    if output.shape != values.shape or valid.shape != output.shape[:1] + output.shape[2:]:
        raise ValueError(
            f"output {tuple(output.shape)}, values {tuple(values.shape)} and valid {tuple(valid.shape)} do not fit"
        )
