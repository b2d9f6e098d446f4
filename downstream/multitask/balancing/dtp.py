"""Dynamic task prioritization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .base import Balancer


class DynamicTaskPriority(Balancer):
    """More weight for difficult tasks, by a key performance indicator (KPI) of each.

    ``w_i = -(1 - k_i)^focus_i log k_i`` (Guo et al., ECCV 2018; thesis, equation 3.9), where k is a moving average
    of the KPI, ``k(t) = smoothing * kpi(t) + (1 - smoothing) * k(t - 1)``, starting at the first KPI. A task weighs 1
    until its first KPI is known. The sizes of the losses do not matter: bring them to similar ones by the base weights.

    Args:
        tasks: names.
        base: fixed scale of the losses.
        focus: gamma of every task, or of each by name (1 where absent): at least 0; the larger, the less an easy task
            weighs.
        smoothing: weight of the newest KPI, in (0, 1]; 1: no average, as in the thesis.
        floor: KPIs are kept within ``[floor, 1 - floor]``, since the logarithm of 0 is not finite.

    Raises:
        UserError: a value out of range, or an unknown task.
    """

    needs_losses: ClassVar[bool] = False
    needs_kpis: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Sequence[str],
        base: Mapping[str, float] | None = None,
        *,
        focus: float | Mapping[str, float] = 1.0,
        smoothing: float = 0.1,
        floor: float = 1e-3,
    ):
        super().__init__(tasks, base)
        named = focus if isinstance(focus, Mapping) else dict.fromkeys(self.tasks, focus)
        for task, value in named.items():
            if task not in self.tasks:
                raise UserError(f"focus: '{task}' is not one of the tasks {', '.join(self.tasks)}")
            if not value >= 0:
                raise UserError(f"focus of {task} is {value:g}; it must be at least 0")
        if not 0 < smoothing <= 1:
            raise UserError(f"smoothing={smoothing:g} of DTP must be above 0 and at most 1")
        if not 0 < floor < 0.5:
            raise UserError(f"floor={floor:g} of DTP must be above 0 and below 0.5")
        self.smoothing, self.floor = smoothing, floor
        gamma = [float(named.get(task, 1.0)) for task in self.tasks]
        self.register_buffer("focus", torch.tensor(gamma), persistent=False)
        self.register_buffer("average", torch.full((len(self.tasks),), float("nan")))

    @torch.no_grad()
    def observe(self, kpis: Tensor) -> None:
        """Take in (T,) KPIs in [0, 1] (of a batch, or of a validation now and then), NaN where unknown."""
        mixed = torch.lerp(self.average, kpis.float(), self.smoothing)
        known = torch.where(self.average.isnan(), kpis.float(), mixed)
        self.average.copy_(torch.where(kpis.isnan(), self.average, known))

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """Weights by the KPIs seen so far, the given ones too."""
        if kpis is not None:
            self.observe(kpis)
        share = self.average.clamp(self.floor, 1 - self.floor)
        weights = -((1 - share) ** self.focus) * share.log()
        return torch.where(self.average.isnan(), 1.0, weights)
