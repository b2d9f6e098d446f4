"""Learning rate over the steps of a run."""

from __future__ import annotations

import math


def cosine_schedule(step: int, *, base: float, total_steps: int, warmup_steps: int = 0) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to 0.

    Args:
        step: optimiser steps done before this one, 0 .. total_steps - 1.
        base: peak learning rate.
        total_steps: steps of the whole run.
        warmup_steps: steps of the linear part; its last step reaches ``base``.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
