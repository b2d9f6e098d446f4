"""Gradient normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .learned import LearnedBalancer

_SMALLEST = 1e-3  # Adam may step over zero; a task with a negative weight would be unlearned


class GradNorm(LearnedBalancer):
    """Brings the tasks' gradients to similar lengths, longer ones for tasks that learn slowly.

    With ``G_i = |w_i grad L_i|``, its mean ``G`` over tasks, and the relative inverse training rate ``r_i`` =
    ``L_i(t) / L_i(0)`` over its mean, minimises ``sum_i |G_i - G r_i^alpha|`` over w, where the target counts as a
    constant (Chen et al., ICML 2018; thesis, equation 3.7). After every step w is scaled to a sum of T. The thesis has
    no ``alpha``, that is 1; the paper uses 1.5 on NYUD.

    ``L_i(0)`` is the first loss above 0: a first batch may be without a valid pixel of a task.

    Args:
        tasks: names.
        base: fixed scale of the losses.
        alpha: how strongly slow tasks are favoured; 0: gradients of equal length.
        learning_rate: of the weights.

    Raises:
        UserError: ``alpha`` below 0.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Sequence[str],
        base: Mapping[str, float] | None = None,
        *,
        alpha: float = 1.0,
        learning_rate: float = 0.025,
    ):
        super().__init__(tasks, base, start=1.0, learning_rate=learning_rate)
        if not alpha >= 0:
            raise UserError(f"alpha={alpha:g} of GradNorm must be at least 0")
        self.alpha = alpha
        self.register_buffer("first", torch.zeros(len(self.tasks)))

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """The weights found so far; then learn from losses and gradients."""
        weights = self.values.detach().clone()
        self.first.copy_(torch.where(self.first > 0, self.first, losses))
        lengths = gramian.diagonal().clamp(min=0).sqrt().to(weights.dtype)
        rates = torch.where(self.first > 0, losses / self.first, 1.0)
        relative = rates / rates.mean().clamp(min=torch.finfo(rates.dtype).tiny)
        weighted = weights * lengths
        excess = weighted - weighted.mean() * relative**self.alpha
        self.descend(excess.sign() * lengths)
        positive = self.values.clamp(min=_SMALLEST)
        self.values.copy_(positive * (len(self.tasks) / positive.sum()))
        return weights
