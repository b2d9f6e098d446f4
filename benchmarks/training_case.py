"""The network that the benchmarks of the training step train, with full queues."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from polyscene.ssl.moco.encoder import Encoder, create_backbone
from polyscene.ssl.moco.model import MoCo
from polyscene.ssl.moco.queue import KeyQueue

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class TrainingCase:
    """What is trained.

    Attributes:
        arch: timm name.
        sizes: pixels of large and small views.
        batch_size: images a step, of a process.
        queue: keys.
        precision: fp32 or bf16.
    """

    arch: str
    sizes: tuple[int, int]
    batch_size: int
    queue: int
    precision: str


def make_model(case: TrainingCase, device: torch.device, seed: int) -> MoCo:
    """Encoders and full queues."""
    torch.manual_seed(seed)
    encoder = Encoder(create_backbone(case.arch), 128)
    model = MoCo(encoder, KeyQueue(case.queue, 128, encoder.feature_dim), 0.995)
    model.queue.written.fill_(case.queue)
    return model.to(device, memory_format=torch.channels_last)


def make_optimizer(model: MoCo) -> torch.optim.Optimizer:
    """As `polyscene pretrain` has it."""
    return torch.optim.SGD(model.query.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=True)
