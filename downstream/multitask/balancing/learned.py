"""Strategies that descend on something to find their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyscene.runtime.errors import UserError

from .base import Balancer


class LearnedBalancer(Balancer):
    """Owns one number per task and the Adam that moves them.

    They are not in the network's optimiser: that one's rate, schedule and weight decay are chosen for other things,
    and its gradients would have to be averaged over the processes. Here gradients are functions of means over the
    processes already.

    Attributes:
        values: (T,) the numbers.
    """

    def __init__(
        self, tasks: Sequence[str], base: Mapping[str, float] | None, *, start: float, learning_rate: float
    ) -> None:
        super().__init__(tasks, base)
        if not learning_rate > 0:
            raise UserError(f"learning_rate={learning_rate:g} of the task weights must be greater than 0")
        self.values = nn.Parameter(torch.full((len(self.tasks),), start))
        self._optimizer = torch.optim.Adam([self.values], lr=learning_rate)

    def descend(self, gradient: Tensor) -> None:
        """One step of Adam along (T,) ``gradient``."""
        self.values.grad = gradient.to(self.values.dtype)
        self._optimizer.step()
        self.values.grad = None

    def _apply(self, function: Callable[..., Tensor], recurse: bool = True) -> LearnedBalancer:
        # Moving a module may replace its parameters, which the optimiser would not notice.
        super()._apply(function, recurse)
        state, rate = self._optimizer.state_dict(), self._optimizer.param_groups[0]["lr"]
        self._optimizer = torch.optim.Adam([self.values], lr=rate)
        self._optimizer.load_state_dict(state)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Momentum of the numbers."""
        return self._optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the momentum; the learning rate stays as it was asked for."""
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.load_state_dict(state)
        self._optimizer.param_groups[0]["lr"] = rate
