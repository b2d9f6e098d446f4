"""Is every loss finite?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .distributed import World
from .errors import RunFailed
from .files import atomic_writer


class FiniteCheck:
    """Looks at every step's loss without making a GPU wait: there, at the loss of the step before.

    Args:
        world: the processes of the run; a loss that is not finite in one of them is reported in all.
        report: called with the step and its loss; must raise.
    """

    def __init__(self, world: World, report: Callable[[int, Tensor], None]):
        self._world, self._report = world, report
        self._pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def check(self, loss: Tensor, step: int) -> None:
        """Look at the scalar ``loss`` of ``step``, now or one step later; a collective call."""
        if loss.device.type == "cpu":
            if self._world.maximum(int(not torch.isfinite(loss))):
                self._report(step, loss)
            return
        self.settle()
        copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
        copy.copy_(loss.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (step, copy, event)

    def settle(self) -> None:
        """Look at what was not looked at yet; a collective call."""
        if self._pending is None:
            return
        (step, copy, event), self._pending = self._pending, None
        event.synchronize()
        if self._world.maximum(int(not torch.isfinite(copy))):
            self._report(step, copy)


def fail(
    folder: Path,
    world: World,
    step: int,
    loss: Tensor,
    learning_rate: float,
    model: nn.Module,
    batch: Mapping[str, Any],
) -> NoReturn:
    """Save what reproduces a loss that is not finite, and end the run.

    Args:
        folder: of the run; gets a file for every process.
        world: the processes of the run.
        step: whose loss it is.
        loss: scalar.
        learning_rate: of the step.
        model: whose weights are saved.
        batch: what the step saw; tensors on the CPU and plain values.

    Raises:
        RunFailed: always.
    """
    path = folder / f"nonfinite-step-{step:08d}-rank{world.rank}.pt"
    content = {
        "step": step,
        "loss": loss.item(),
        **batch,
        "learning_rate": learning_rate,
        # On a GPU the loss is looked at one step late: then these weights have already moved.
        "model_is_from_before_the_step": world.device.type == "cpu",
        "model": model.state_dict(),
    }
    with atomic_writer(path) as file:
        torch.save(content, file)
    raise RunFailed(
        f"the loss is {loss.item()} at step {step}; the batch and the weights are saved in '{path}', and "
        f"checkpoints of earlier steps are intact; try a lower optim.lr or precision=fp32"
    )
