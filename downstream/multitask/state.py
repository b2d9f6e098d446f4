"""The whole state of a multi-task training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyscene.runtime.training_state import TrainingState


@dataclass
class MultitaskState(TrainingState):
    """Everything that a killed run needs to go on as if nothing had happened: on a CPU, bit for bit.

    The checkpoint holds the whole model, frozen filters too: a run directory needs no other file to continue.
    """

    FORMAT: ClassVar[str] = "polyscene-multitask-1"
