"""Heads by name, and the heads of all tasks of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyscene.runtime.errors import UserError

from .aspp import ASPPHead
from .blocks import initialise
from .deeplab import DeepLabV3PlusHead
from .image_level import ImageLevelHead

DenseHead = ASPPHead | DeepLabV3PlusHead
Head = DenseHead | ImageLevelHead
_HEADS: dict[str, type[DenseHead]] = {"deeplab_v3_plus": DeepLabV3PlusHead, "aspp": ASPPHead}
HEADS = tuple(_HEADS)


def head_layers(kind: str) -> tuple[str, ...]:
    """Stages of the encoder that a kind of head reads.

    Raises:
        UserError: an unknown kind.
    """
    return _class(kind).layers


def build_head(
    kind: str,
    *,
    inputs: Sequence[int],
    strides: Sequence[int],
    channels: int,
    width: int,
    seed: int,
    task: str,
    image_level: bool = False,
) -> Head:
    """Make the head of a task, on the CPU, with gradients and in training mode.

    Its initial values depend on ``seed`` and ``task`` alone (and on the shapes): whatever tasks are made before it,
    in the same job or another, it is the same bit for bit. The global random state is left alone.

    Args:
        kind: one of `HEADS`.
        inputs: width of the map of every stage of `head_layers`.
        strides: image pixels per cell of these maps.
        channels: of the output.
        width: of the layers between, 256 in the papers.
        seed: of the initial values.
        task: name of the task.
        image_level: make an `ImageLevelHead` on the last of the maps instead, as ResNet's own classifier has it.

    Raises:
        UserError: an unknown kind.
    """
    with torch.random.fork_rng(devices=[]):
        if image_level:
            head = ImageLevelHead(inputs[-1:], channels)
        else:
            head = _class(kind)(inputs, strides, channels, width)
    initialise(head, head.prediction, torch.Generator().manual_seed(_task_seed(seed, task)))
    return head


class TaskHeads(nn.Module):
    """The heads of all tasks; keys of a task's head start with ``tasks.NAME.``."""

    def __init__(self, kind: str, inputs: Sequence[int], strides: Sequence[int], width: int):
        super().__init__()
        self.kind, self.inputs, self.strides, self.width = kind, tuple(inputs), tuple(strides), width
        self.tasks = nn.ModuleDict()

    def add_task(self, task: str, channels: int, seed: int, image_level: bool = False) -> None:
        """Add a head, on the CPU."""
        head = build_head(
            self.kind,
            inputs=self.inputs,
            strides=self.strides,
            channels=channels,
            width=self.width,
            seed=seed,
            task=task,
            image_level=image_level,
        )
        self.tasks[task] = head.train(self.training)

    def remove_task(self, task: str) -> None:
        """Drop the task's head."""
        del self.tasks[task]

    def forward(self, maps: Sequence[Tensor], task: str, size: tuple[int, int]) -> Tensor:
        """Feature maps of the encoder -> the task's raw output (N, channels, *size) float32; 1x1 at the image level."""
        return self.tasks[task](maps, size)


def _class(kind: str) -> type[DenseHead]:
    if kind not in _HEADS:
        raise UserError(f"model.head={kind}: choose {' or '.join(HEADS)}")
    return _HEADS[kind]


def _task_seed(seed: int, task: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:8], "little") >> 1
