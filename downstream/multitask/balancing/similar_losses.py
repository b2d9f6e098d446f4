"""Weights that bring all losses to similar sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .base import Balancer


class SimilarLosses(Balancer):
    """Measures the losses for some iterations, then weighs each by the inverse of its mean (thesis, heuristic 2).

    The task with the largest mean loss weighs 1: means of 100 and 1 give weights 1 and 100. While measuring for the
    first time all weigh 1. Base weights are the importance of the tasks (heuristic 3): the weighted losses are in their
    proportion.

    Args:
        tasks: names.
        base: importance.
        iterations: how many to measure.
        repeat: measure and set again and again, every ``iterations`` steps (heuristic 4).
        keep_sum: scale the weights to a sum of T, so that the learning rate means the same as with uniform weights.

    Raises:
        UserError: ``iterations`` below 1.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        base: Mapping[str, float] | None = None,
        *,
        iterations: int = 100,
        repeat: bool = False,
        keep_sum: bool = False,
    ):
        super().__init__(tasks, base)
        if iterations < 1:
            raise UserError(f"iterations={iterations} to measure losses must be at least 1")
        self.iterations, self.repeat, self.keep_sum = iterations, repeat, keep_sum
        self.register_buffer("running", torch.zeros(len(self.tasks)))
        self.register_buffer("found", torch.ones(len(self.tasks)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """The weights found so far; then measure."""
        weights = self.found.clone()
        # Importance multiplies the result; it must not be balanced away.
        running = self.running + losses / self.base
        self.steps += 1
        ends = self.steps % self.iterations == 0
        if not self.repeat:
            ends = ends & (self.steps == self.iterations)
        # A task that had no valid pixel so far keeps weight 1.
        inverse = torch.where(running > 0, running.max() / running, 1.0)
        if self.keep_sum:
            inverse = inverse * (len(self.tasks) / inverse.sum())
        self.found.copy_(torch.where(ends, inverse, self.found))
        self.running.copy_(torch.where(ends, 0.0, running))
        return weights
