"""The whole state of a pretraining, and the backbone that is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from polyscene.runtime import training_state
from polyscene.runtime.batch_norm import averaged_statistics
from polyscene.runtime.weight_formats.pretrain import CHECKPOINT_FORMAT

from .moco.model import MoCo


@dataclass
class TrainingState(training_state.TrainingState):
    """Everything that a killed pretraining needs: query encoder, key encoder, queues, optimiser, step."""

    FORMAT: ClassVar[str] = CHECKPOINT_FORMAT

    model: MoCo

    def norm_modules(self) -> dict[str, nn.Module]:
        """Both encoders: each has BatchNorm statistics of its own."""
        return {"query": self.model.query, "key": self.model.key}


def averaged_backbone(state: TrainingState) -> dict[str, Tensor]:
    """The query backbone's state dict on the CPU, with BatchNorm statistics averaged over the processes.

    A collective call.
    """
    backbone = state.model.query.backbone
    with averaged_statistics(backbone, state.world):
        return {k: v.detach().cpu().clone() for k, v in backbone.state_dict().items()}
