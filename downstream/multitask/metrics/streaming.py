"""What all metrics share: sums over images that can be merged, saved and reduced over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class StreamingMetric(ABC):
    """A metric whose state is a set of sums, so adding the states of shards equals one pass over all images.

    Subclasses fill :attr:`sums` with int64 and float64 tensors in their constructor and add to them in
    :meth:`update`. A number with nothing to average over is NaN.

    Args:
        sums: what is added up, all zero.
        settings: what the sums depend on; only metrics with equal ones can be merged.
    """

    def __init__(self, sums: Mapping[str, Tensor], settings: tuple = ()) -> None:
        self.sums: dict[str, Tensor] = dict(sums)
        self.settings = settings

    @abstractmethod
    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image.

        Args:
            prediction: what the network predicts there, activated, at the target's size.
            values: the target.
            valid: (H, W) bool, the pixels that count.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The numbers over everything added so far: metric key -> value."""

    def merge(self, other: StreamingMetric) -> None:
        """Add what ``other``, a metric with the same settings, has seen.

        Raises:
            ValueError: a metric of another kind or with other settings.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            names = [f"{type(metric).__name__}{metric.settings}" for metric in (other, self)]
            raise ValueError(f"cannot merge {names[0]} into {names[1]}")
        self._check(other.sums)
        for key, value in other.sums.items():
            self.sums[key] += value.to(self.sums[key].device)

    def state(self) -> dict[str, Tensor]:
        """A copy of the sums; an all-reduce sum of it over processes is the state of one pass."""
        return {key: value.clone() for key, value in self.sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the state of a metric of another kind or with other settings.
        """
        self._check(state)
        self.sums = {key: state[key].to(value.device, value.dtype, copy=True) for key, value in self.sums.items()}

    def _check(self, state: Mapping[str, Tensor]) -> None:
        theirs = {key: tuple(value.shape) for key, value in state.items()}
        mine = {key: tuple(value.shape) for key, value in self.sums.items()}
        if theirs != mine:
            raise ValueError(f"the state of another metric: it holds {theirs}, this one {mine}")


def check_sizes(prediction: Tensor, values: Tensor, valid: Tensor) -> None:
    """All three must have the same height and width: predictions are measured at native resolution.

    Raises:
        ValueError: they do not, or ``valid`` is no mask.
    """
    sizes = {tuple(tensor.shape[-2:]) for tensor in (prediction, values, valid)}
    if len(sizes) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (prediction, values, valid))
        raise ValueError(f"prediction, values and valid must have one size, not {shapes}")
    if valid.dtype != torch.bool or valid.dim() != 2:
        raise ValueError(f"valid must be an (H, W) bool mask, not {tuple(valid.shape)} {valid.dtype}")


def ratio(numerator: Tensor | float, denominator: Tensor | float) -> float:
    """``numerator / denominator``, NaN where the denominator is 0."""
    return float(numerator) / float(denominator) if float(denominator) else float("nan")
