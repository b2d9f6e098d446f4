"""Dynamic weight averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .base import Balancer


class DynamicWeightAverage(Balancer):
    """More weight for tasks whose loss falls slowly.

    ``w_i = T exp(r_i / temperature) / sum_n exp(r_n / temperature)`` with ``r_n = L_n(t - 1) / L_n(t - 2)`` (Liu et
    al., CVPR 2019; thesis, equation 3.8). t counts periods, L is the mean over a period. Weights are 1 in the first
    two. The sizes of the losses do not matter: bring them to similar ones by the base weights.

    Args:
        tasks: names.
        base: fixed scale of the losses.
        period: steps per period. The paper's is an epoch; 1 is the thesis' equation word by word.
        temperature: softness; 2 in the paper.

    Raises:
        UserError: ``period`` or ``temperature`` out of range.
    """

    def __init__(
        self, tasks: Sequence[str], base: Mapping[str, float] | None = None, *, period: int, temperature: float = 2.0
    ):
        super().__init__(tasks, base)
        if period < 1:
            raise UserError(f"period={period} of DWA must be at least 1 step")
        if not temperature > 0:
            raise UserError(f"temperature={temperature:g} of DWA must be greater than 0")
        self.period, self.temperature = period, temperature
        for name in ("running", "last", "before"):
            self.register_buffer(name, torch.zeros(len(self.tasks)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """The weights of this period; then add the losses to it."""
        ratios = torch.where(self.before > 0, self.last / self.before, 1.0)
        weights = torch.softmax(ratios / self.temperature, dim=0) * len(self.tasks)
        weights = torch.where(self.steps >= 2 * self.period, weights, 1.0)
        running = self.running + losses
        self.steps += 1
        ends = self.steps % self.period == 0
        self.before.copy_(torch.where(ends, self.last, self.before))
        self.last.copy_(torch.where(ends, running / self.period, self.last))
        self.running.copy_(torch.where(ends, 0.0, running))
        return weights
