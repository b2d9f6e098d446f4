"""The whole state of a training: what a checkpoint holds and how a run continues from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from .batch_norm import load_running_statistics, running_statistics
from .checkpoint import restore_checkpoint, set_aside
from .distributed import World
from .errors import UserError
from .run import RunDirectory


@dataclass
class TrainingState:
    """Everything that a killed run needs to go on as if nothing had happened.

    Subclasses set ``FORMAT`` and may say which modules have BatchNorm statistics (`norm_modules`).

    Attributes:
        model: with all parameters and buffers, frozen ones too.
        optimizer: with its momentum buffers.
        world: the processes of the run.
        identity: constant entries of the checkpoint, such as arch, dataset, config_hash.
        step: optimiser steps done.
    """

    FORMAT: ClassVar[str] = ""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    world: World
    identity: dict[str, str]
    step: int = 0

    def norm_modules(self) -> dict[str, nn.Module]:
        """Name -> module whose BatchNorm running statistics every process has its own of."""
        return {"model": self.model}

    def snapshot(self, steps_per_epoch: int) -> dict[str, Any]:
        """The checkpoint's content; a collective call: BatchNorm statistics of every process are part of it."""
        statistics = {
            name: self.world.gather(running_statistics(module)[None]).cpu()
            for name, module in self.norm_modules().items()
        }
        return {
            "format": self.FORMAT,
            "step": self.step,
            "epoch": self.step / steps_per_epoch,
            **self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "norm_statistics": statistics,
        }

    def restore(self, saved: dict[str, Any]) -> bool:
        """Take over a checkpoint's content; False if it came from another number of processes.

        Raises:
            UserError: the checkpoint does not fit the model.
        """
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"the checkpoint does not fit this model: {first}") from error
        self.step = int(saved["step"])
        same_size = True
        for name, module in self.norm_modules().items():
            ranks = saved["norm_statistics"][name]
            same_size = ranks.shape[0] == self.world.size
            load_running_statistics(module, ranks[self.world.rank] if same_size else ranks.double().mean(dim=0))
        return same_size


def resume(state: TrainingState, folder: Path, run: RunDirectory) -> None:
    """Continue from the newest intact checkpoint, if there is one.

    Raises:
        UserError: checkpoints exist but none can be read, or they belong to another model.
    """
    restored = restore_checkpoint(folder, map_location="cpu")
    state.world.barrier()  # nobody renames a file that somebody still reads
    if restored is None:
        run.rewind_metrics(0)  # of a run that was killed before its first checkpoint
        return
    if state.world.is_main:
        set_aside(restored.damaged)
    for _, reason in restored.damaged:
        run.warn(f"{reason}; falling back to '{restored.path.name}'")
    if not state.restore(restored.state):
        run.warn(
            f"the checkpoint was written by another number of processes than {state.world.size}: "
            "the run goes on, but no longer bit-identically"
        )
    run.rewind_metrics(state.step)
    run.log(f"continuing at step {state.step} from '{restored.path.name}'")
