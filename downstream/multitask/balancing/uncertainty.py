"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .learned import LearnedBalancer


class Uncertainty(LearnedBalancer):
    """Learns every task's noise: noisy tasks, whose losses stay large, weigh less.

    Minimises ``sum_i c_i / sigma_i^2 * L_i + log sigma_i`` (Kendall et al., CVPR 2018; thesis, equation 3.6) over
    ``values = log sigma^2``, which cannot leave the range of a variance. c is 1/2 for all tasks, as in the thesis, or
    1 for the tasks in ``classification``, as in Kendall's derivation for a scaled softmax. The weights are
    ``c / sigma^2``; for constant losses they tend to ``1 / (2 L)``.

    Args:
        tasks: names.
        base: fixed scale of the losses.
        classification: tasks with c = 1.
        learning_rate: of ``values``. The published training has them in the network's optimiser.

    Raises:
        UserError: an unknown task among ``classification``.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        base: Mapping[str, float] | None = None,
        *,
        classification: Collection[str] = (),
        learning_rate: float = 0.01,
    ):
        super().__init__(tasks, base, start=0.0, learning_rate=learning_rate)
        for task in classification:
            if task not in self.tasks:
                raise UserError(f"classification: '{task}' is not one of the tasks {', '.join(self.tasks)}")
        factors = [1.0 if task in classification else 0.5 for task in self.tasks]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    def variances(self) -> Tensor:
        """(T,) the tasks' sigma squared."""
        return self.values.detach().exp()

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """The weights of the noise found so far; then learn from the losses."""
        weights = self.factors * torch.exp(-self.values)
        self.descend(0.5 - weights * losses)
        return weights
