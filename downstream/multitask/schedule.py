"""Learning rates of multi-task training, and when things happen."""

from __future__ import annotations

from dataclasses import dataclass

from polyscene.runtime.loop import LoopPlan

SCHEDULES = ("iteration", "epoch", "constant")


def poly_rate(step: int, *, base: float, total_steps: int, power: float = 0.9, every: int = 1) -> float:
    """Polynomial decay: ``base * (1 - s / total_steps) ** power``.

    Args:
        step: optimiser steps done before this one, 0 .. total_steps - 1.
        base: the first learning rate.
        total_steps: steps of the whole run.
        power: 0.9 in ASTMT, RCM and MTI-Net.
        every: s is ``step`` rounded down to a multiple of this: 1 for a decay per iteration, the steps of an epoch for
            one per epoch.
    """
    done = step // every * every
    return base * max(0.0, 1 - done / total_steps) ** power


@dataclass(frozen=True, kw_only=True)
class Schedule(LoopPlan):
    """When things happen, and the learning rate.

    Attributes:
        total_steps: length of the learning-rate schedule; ``end_step`` may be earlier for a smoke run.
        learning_rate: the first one.
        kind: ``iteration`` or ``epoch``: polynomial decay, changed so often; or ``constant``.
        power: of the decay.
    """

    total_steps: int
    learning_rate: float
    kind: str = "iteration"
    power: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"kind='{self.kind}': must be one of {', '.join(SCHEDULES)}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if self.kind == "constant":
            return self.learning_rate
        every = 1 if self.kind == "iteration" else self.steps_per_epoch
        return poly_rate(step, base=self.learning_rate, total_steps=self.total_steps, power=self.power, every=every)
