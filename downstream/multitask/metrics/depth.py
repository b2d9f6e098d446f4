"""Depth: root mean square error in metres, relative error and threshold accuracies over valid pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .streaming import StreamingMetric, check_sizes, ratio

PROTOCOLS = ("survey", "rcm")
_DELTAS = ("delta1", "delta2", "delta3")


class DepthMetric(StreamingMetric):
    """RMSE over all valid pixels (``survey``), or the mean of every image's RMSE (``rcm``).

    The relative error |p - t| / t and the shares of pixels with max(p / t, t / p) < 1.25^k (k = 1, 2, 3) are pooled
    over all valid pixels in both. Negative predictions count as 0 m, as in the published code.

    Keys: ``rmse`` in metres, ``abs_rel``, ``delta1``, ``delta2``, ``delta3`` as shares.

    Args:
        protocol: one of :data:`PROTOCOLS`.

    Raises:
        ValueError: an unknown protocol.
    """

    def __init__(self, protocol: str) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown depth protocol '{protocol}', choose from {', '.join(PROTOCOLS)}")
        self.protocol = protocol
        sums = {key: torch.zeros((), dtype=torch.float64) for key in ("squares", "image_rmse", "relative")}
        sums |= {key: torch.zeros((), dtype=torch.int64) for key in ("pixels", "images")}
        sums["deltas"] = torch.zeros(len(_DELTAS), dtype=torch.int64)
        super().__init__(sums, (protocol,))

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` (H, W) and ``values`` (1, H, W) in metres; targets of 0 or less are left out.

        An image without a valid pixel changes nothing.

        Raises:
            ValueError: sizes differ.
        """
        check_sizes(prediction, values, valid)
        counted = valid & (values[0] > 0)
        truth = values[0][counted].double()
        guess = prediction[counted].double().clamp(min=0)
        if not truth.numel():
            return
        squares = ((guess - truth) ** 2).sum().cpu()
        factor = torch.maximum(guess / truth, truth / guess)
        self.sums["squares"] += squares
        self.sums["image_rmse"] += (squares / truth.numel()) ** 0.5
        self.sums["relative"] += ((guess - truth).abs() / truth).sum().cpu()
        self.sums["pixels"] += truth.numel()
        self.sums["images"] += 1
        self.sums["deltas"] += torch.stack([(factor < 1.25**power).sum() for power in (1, 2, 3)]).cpu()

    def compute(self) -> dict[str, float]:
        """RMSE in metres and shares."""
        pixels = self.sums["pixels"]
        if self.protocol == "rcm":
            rmse = ratio(self.sums["image_rmse"], self.sums["images"])
        else:
            rmse = ratio(self.sums["squares"], pixels) ** 0.5
        result = {"rmse": rmse, "abs_rel": ratio(self.sums["relative"], pixels)}
        return result | {key: ratio(count, pixels) for key, count in zip(_DELTAS, self.sums["deltas"])}
