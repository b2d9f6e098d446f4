"""Surface normals: angles between predicted and true normals, pooled over all valid pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .streaming import StreamingMetric, check_sizes, ratio

BIN = 1e-3  # degrees
_BINS = 180_000
_LIMITS = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}


class NormalsMetric(StreamingMetric):
    """Mean, median and root mean square angle, and the share of pixels below 11.25, 22.5 and 30 degrees.

    The median comes from a histogram with bins of 0.001 degrees: it is off by at most half a bin. All else is exact.

    Keys: ``mean``, ``median``, ``rmse`` in degrees; ``within_11_25``, ``within_22_5``, ``within_30`` as shares.
    """

    def __init__(self) -> None:
        sums = {
            "angles": torch.zeros((), dtype=torch.float64),
            "squares": torch.zeros((), dtype=torch.float64),
            "within": torch.zeros(len(_LIMITS), dtype=torch.int64),
            "histogram": torch.zeros(_BINS, dtype=torch.int64),
        }
        super().__init__(sums)

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image: ``prediction`` and ``values`` (3, H, W); lengths do not matter.

        A target of length 0 has no direction and is left out; a prediction of length 0 counts as 90 degrees.

        Raises:
            ValueError: sizes differ.
        """
        check_sizes(prediction, values, valid)
        angles = angles_between(prediction[:, valid].double(), values[:, valid].double())
        angles = angles[values[:, valid].abs().sum(0) > 0]
        self.sums["angles"] += angles.sum().cpu()
        self.sums["squares"] += (angles**2).sum().cpu()
        self.sums["within"] += torch.stack([(angles < limit).sum() for limit in _LIMITS.values()]).cpu()
        bins = (angles.nan_to_num(180.0) / BIN).long().clamp(max=_BINS - 1)
        self.sums["histogram"] += torch.bincount(bins, minlength=_BINS).cpu()

    def compute(self) -> dict[str, float]:
        """Angles in degrees and shares of pixels."""
        pixels = self.sums["histogram"].sum()
        result = {
            "mean": ratio(self.sums["angles"], pixels),
            "median": self._median(int(pixels)),
            "rmse": ratio(self.sums["squares"], pixels) ** 0.5,
        }
        return result | {key: ratio(count, pixels) for key, count in zip(_LIMITS, self.sums["within"])}

    def _median(self, pixels: int) -> float:
        """The middle of the bin that holds the median; the mean of two such bins for an even number of pixels."""
        if not pixels:
            return float("nan")
        below = self.sums["histogram"].cumsum(0)
        ranks = torch.tensor([(pixels - 1) // 2 + 1, pixels // 2 + 1])
        return float((torch.searchsorted(below, ranks).double() + 0.5).mean() * BIN)


def angles_between(first: Tensor, second: Tensor) -> Tensor:
    """Angles in degrees between vectors (3, N) and (3, N), exact for small angles too; 90 for a vector of length 0."""
    cosine = (first * second).sum(0)
    sine = torch.linalg.cross(first, second, dim=0).norm(dim=0)
    angles = torch.rad2deg(torch.atan2(sine, cosine))
    return torch.where((sine == 0) & (cosine == 0), 90.0, angles)
