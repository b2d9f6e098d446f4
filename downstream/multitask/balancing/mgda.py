"""The multiple gradient descent algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from .base import Balancer
from .min_norm import MOST_TASKS, min_norm_of, subsets

NORMALIZE = ("none", "l2", "loss", "loss+")
SOLVERS = ("exact", "torchjd")


class MGDA(Balancer):
    """The shortest convex combination of the tasks' gradients: no step that is against any task (Desideri, 2012).

    The weights multiply the losses, so that the heads get them too, as in the published code of Sener and Koltun
    (NeurIPS 2018); their algorithm trains the heads without weights.

    With ``normalize`` the combination is of gradients divided by their length (``l2``), by the loss (``loss``), or by
    both (``loss+``). The weights are ``a_i / divisor_i``, scaled to ``total``: still a common direction of
    descent. **The published code differs**: it gives a_i, which is not.

    Args:
        tasks: names.
        base: fixed scale of the losses.
        normalize: one of `NORMALIZE`.
        total: sum of the weights, at base weights of 1. 1 as published; T to compare at the learning rate of uniform
            weights.
        solver: ``exact`` (up to 10 tasks), or ``torchjd``: its Frank-Wolfe, on the host; waits for a GPU once a step.

    Raises:
        UserError: a value out of range, too many tasks for the solver, or torchjd is not installed.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Sequence[str],
        base: Mapping[str, float] | None = None,
        *,
        normalize: str = "none",
        total: float = 1.0,
        solver: str = "exact",
    ):
        super().__init__(tasks, base)
        if normalize not in NORMALIZE:
            raise UserError(f"normalize={normalize} of MGDA: choose {', '.join(NORMALIZE)}")
        if solver not in SOLVERS:
            raise UserError(f"solver={solver} of MGDA: choose {' or '.join(SOLVERS)}")
        if not total > 0:
            raise UserError(f"total={total:g} of MGDA must be greater than 0")
        if solver == "exact" and len(self.tasks) > MOST_TASKS:
            raise UserError(f"solver=exact of MGDA is for at most {MOST_TASKS} tasks; use solver=torchjd")
        self.normalize, self.total = normalize, total
        self._frank_wolfe = _torchjd_solver() if solver == "torchjd" else None
        sets = subsets(len(self.tasks)) if solver == "exact" else torch.zeros(0, dtype=torch.bool)
        self.register_buffer("members", sets, persistent=False)

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """(T,) weights whose sum is ``total``."""
        if self.normalize == "none":
            return self.total * self._solve(gramian)
        divisors = torch.ones_like(gramian.diagonal())
        if self.normalize in ("l2", "loss+"):
            divisors = divisors * gramian.diagonal().clamp(min=0).sqrt()
        if self.normalize in ("loss", "loss+"):
            divisors = divisors * losses.to(divisors.dtype)
        # A task without a gradient (no valid pixel in the batch) must not divide by zero.
        divisors = torch.where(divisors > 0, divisors, 1.0)
        weights = self._solve(gramian / torch.outer(divisors, divisors)) / divisors
        return weights * (self.total / weights.sum())

    def _solve(self, gramian: Tensor) -> Tensor:
        # The gradient of a task without a valid pixel in the batch is zero, the shortest of all: with all the weight,
        # it would stop the others. As a very long one it gets none.
        lengths = gramian.diagonal()
        longest = torch.where(lengths.max() > 0, lengths.max(), 1.0)
        gramian = gramian + torch.diag_embed(torch.where(lengths > 0, 0.0, longest * 1e12))
        if self._frank_wolfe is None:
            return min_norm_of(gramian, self.members)
        # It compares single numbers in every iteration: one copy to the host instead of hundreds of waits.
        return self._frank_wolfe(gramian.cpu()).to(gramian.device)


def _torchjd_solver() -> torch.nn.Module:
    try:
        from torchjd.aggregation import MGDAWeighting
    except ImportError as error:
        raise UserError("solver=torchjd of MGDA needs the package torchjd; pip install torchjd") from error
    return MGDAWeighting(epsilon=1e-5, max_iters=250)
