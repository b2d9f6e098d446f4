"""What every strategy of task balancing is: a map from losses, gradients or scores to weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from polyscene.runtime.errors import UserError


class Balancer(nn.Module):
    """Weights of the tasks' losses, a step at a time; subclasses implement :meth:`balance`.

    The base weights are a fixed scale of the losses: a strategy balances ``base * loss``, and what it gives is
    multiplied by ``base`` again. With base weights of 1 a strategy is as published.

    A module so that its memory follows ``to(device)`` and lies in ``state_dict()``: a run that is continued from it
    gives the same weights. Nothing here waits for the device. All processes give equal weights if they get equal
    arguments: means over the processes of losses and gradients, not their own.

    Args:
        tasks: names; all vectors are in this order.
        base: task -> fixed weight above 0; 1 where absent.

    Raises:
        UserError: no task, a name twice, or a weight that is not above 0.
    """

    needs_losses: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    needs_kpis: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str], base: Mapping[str, float] | None = None):
        super().__init__()
        if not tasks or len(set(tasks)) < len(tasks):
            raise UserError(f"tasks={list(tasks)}: name at least one task, and each once")
        self.tasks = tuple(tasks)
        scale = [float((base or {}).get(task, 1.0)) for task in tasks]
        for task, value in zip(tasks, scale):
            if not 0 < value < float("inf"):
                raise UserError(f"task_weights.{task}={value:g} must be a number above 0")
        self.register_buffer("base", torch.tensor(scale), persistent=False)

    @torch.no_grad()
    def weigh(self, losses: Tensor, gramian: Tensor | None = None, kpis: Tensor | None = None) -> Tensor:
        """The weights of this step; to be called once a step, since strategies learn from it.

        Args:
            losses: (T,) unweighted losses of the global batch, each the sum over all outputs of its task. Not read
                where ``needs_losses`` is False.
            gramian: (T, T) float64 inner products of the tasks' gradients (:func:`.gradients.gramian`); for
                ``needs_gradients``.
            kpis: (T,) shares in [0, 1] of what is right already (:func:`.kpis.batch_kpis`), NaN where unknown; for
                ``needs_kpis``.

        Returns:
            (T,) float32 on the device, without gradient. The step minimises ``(weights * losses).sum()``.

        Raises:
            ValueError: gradients are needed and not given.
        """
        if self.needs_gradients:
            if gramian is None:
                raise ValueError(f"{type(self).__name__} needs the gradients of the tasks")
            gramian = gramian.detach() * torch.outer(self.base, self.base)
        return self.base * self.balance(losses.detach().float() * self.base, gramian, kpis).float()

    def balance(self, losses: Tensor, gramian: Tensor | None, kpis: Tensor | None) -> Tensor:
        """(T,) weights for losses and gradients that are multiplied by the base weights."""
        raise NotImplementedError
