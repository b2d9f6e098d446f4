"""The whole state of a multi-task training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from polyscene.runtime.errors import UserError
from polyscene.runtime.training_state import TrainingState

from .balancing.base import Balancer


@dataclass
class MultitaskState(TrainingState):
    """Everything that a killed run needs to go on as if nothing had happened: on a CPU, bit for bit.

    The checkpoint holds the whole model, frozen filters too: a run directory needs no other file to continue.

    Attributes:
        balancer: of the tasks' losses, with what it has learnt; None: nothing to keep.
    """

    FORMAT: ClassVar[str] = "polyscene-multitask-1"

    balancer: Balancer | None = None

    def snapshot(self, steps_per_epoch: int) -> dict[str, Any]:
        """The checkpoint's content, with the balancer's."""
        balancer = {} if self.balancer is None else self.balancer.state_dict()
        return {**super().snapshot(steps_per_epoch), "balancer": balancer}

    def restore(self, saved: dict[str, Any]) -> bool:
        """Take over a checkpoint's content; False if it came from another number of processes.

        Raises:
            UserError: the checkpoint does not fit the model or the balancer.
        """
        if self.balancer is not None:
            try:
                self.balancer.load_state_dict(saved["balancer"])
            except (RuntimeError, KeyError) as error:
                raise UserError(
                    "the checkpoint is of another balancing strategy; overwrite=true starts afresh"
                ) from error
        return super().restore(saved)
