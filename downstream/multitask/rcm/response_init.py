"""Response Initialization: a filter bank along the principal directions of a convolution's responses.

Paper section 3.3; the reduced rank follows Zhang et al., "Accelerating very deep convolutional networks", 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments


@dataclass(frozen=True)
class ResponseBasis:
    """Principal directions of the responses of one convolution.

    Attributes:
        directions: (C, C) float64, orthogonal columns ``U``, largest variance first.
        variances: (C,) float64, of the responses along each direction.
        mean: (C,) float64, mean response.
    """

    directions: Tensor
    variances: Tensor
    mean: Tensor

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Split a convolution (C, C_in, k, k): bank ``U^T W`` (rank, C_in, k, k) and modulators ``U`` (C, rank).

        Both are float64; at full rank their product is ``W``.
        """
        kept = self.directions[:, :rank]
        return torch.einsum("or,oikl->rikl", kept, weight.detach().cpu().double()), kept

    def lost_mean(self, rank: int) -> Tensor:
        """(C,) float64: ``ybar - U U^T ybar``, the part of the mean response outside the kept directions.

        The best rank-r approximation is ``U U^T (y - ybar) + ybar = U U^T y + lost``. The BatchNorm that follows
        computes ``y - running_mean``, so ``lost`` is restored by *subtracting* it from the running mean. (The
        authors' published code adds it.)
        """
        kept = self.directions[:, :rank]
        return self.mean - kept @ (kept.T @ self.mean)

    def energy_kept(self) -> Tensor:
        """(C,) float64: share of the total variance in the first 1, 2, ..., C directions; the spectrum."""
        total = self.variances.sum()
        if total == 0:
            return torch.ones_like(self.variances)
        return self.variances.cumsum(0) / total


def response_basis(moments: Moments) -> ResponseBasis:
    """Eigen-decomposition ``U S U^T`` of the covariance; every direction's largest entry is made positive."""
    variances, directions = torch.linalg.eigh(moments.covariance)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return ResponseBasis(directions * largest.sign(), variances, moments.mean)


def resolve_rank(rank: float | None, channels: int) -> int:
    """How many directions of ``channels`` are kept.

    Args:
        rank: None for all; below 1 a share of the channels; from 1 on a number, at most ``channels``.
        channels: width of the layer.

    Raises:
        ValueError: not positive, or a broken number above 1.
    """
    if rank is None:
        return channels
    if rank <= 0 or (rank >= 1 and rank != int(rank)):
        raise ValueError(f"rank={rank}: give a share between 0 and 1 or a whole number of directions")
    return max(1, round(rank * channels)) if rank < 1 else min(int(rank), channels)


def spectrum(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Name of the convolution -> (C,) share of the variance kept by the first 1 .. C directions."""
    return {name: response_basis(each).energy_kept() for name, each in moments.items()}
