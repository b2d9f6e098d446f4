"""The whole state of a pretraining: what a checkpoint holds and how a run continues from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyscene.runtime.checkpoint import restore_checkpoint, set_aside
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.weight_formats.pretrain import CHECKPOINT_FORMAT

from .moco.model import MoCo
from .moco.normalization import load_running_statistics, running_statistics


@dataclass
class TrainingState:
    """Everything that a killed run needs to go on as if nothing had happened.

    Attributes:
        model: query encoder, key encoder, queues.
        optimizer: with its momentum buffers.
        world: the processes of the run.
        identity: constant entries of the checkpoint: arch, dataset, config_hash.
        step: optimiser steps done.
    """

    model: MoCo
    optimizer: torch.optim.Optimizer
    world: World
    identity: dict[str, str]
    step: int = 0

    def snapshot(self, steps_per_epoch: int) -> dict[str, Any]:
        """The checkpoint's content; a collective call: BatchNorm statistics of every process are part of it."""
        statistics = {
            name: self.world.gather(running_statistics(module)[None]).cpu()
            for name, module in (("query", self.model.query), ("key", self.model.key))
        }
        return {
            "format": CHECKPOINT_FORMAT,
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
        for name, module in (("query", self.model.query), ("key", self.model.key)):
            ranks = saved["norm_statistics"][name]
            same_size = ranks.shape[0] == self.world.size
            load_running_statistics(module, ranks[self.world.rank] if same_size else ranks.mean(dim=0))
        return same_size


def averaged_backbone(state: TrainingState) -> dict[str, Tensor]:
    """The query backbone's state dict on the CPU, with BatchNorm statistics averaged over the processes.

    A collective call.
    """
    backbone = state.model.query.backbone
    own = running_statistics(backbone)
    load_running_statistics(backbone, state.world.mean(own))
    averaged = {k: v.detach().cpu().clone() for k, v in backbone.state_dict().items()}
    load_running_statistics(backbone, own)
    return averaged


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
