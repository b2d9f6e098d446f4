"""What MTI-Net and PAD-Net have in common: tasks that use each other's features, and auxiliary tasks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn

from polyscene.runtime.errors import UserError

from ..models.base import DenseModel, ModelParameters, Outputs
from ..rcm.per_task import check_new_task
from .backbones import MultiScaleMaps
from .blocks import initialise_by_name
from .heads import MultiScaleHeads

_OWN = re.compile(r"(?:^|\.)tasks\.(\w+)\.")


class InteractionModel(DenseModel):
    """A backbone, a front end that predicts all tasks for a first time, and heads for the main tasks.

    The first predictions are the ``deep`` outputs; auxiliary tasks are in these alone. The front end of every task is
    run whichever are asked for, since their features feed the others. A task's own parts are its head and the
    distillation into it.

    Image-level tasks take no part in this: their linear heads read the backbone's maps (thesis, section 5.4). With or
    without them the network of the dense tasks is the same.

    Attributes:
        auxiliary: names of the tasks that only the front end predicts.
        deep_strides: image pixels per cell of every deep output, in their order.
    """

    heads: MultiScaleHeads

    def __init__(
        self,
        encoder: MultiScaleMaps,
        heads: MultiScaleHeads,
        channels: Mapping[str, int],
        auxiliary: Mapping[str, int],
        head_seed: int,
        image_level: Collection[str] = (),
    ):
        """Add a head for every task of ``channels``; subclasses make the rest, then call `initialise`.

        Raises:
            UserError: a name that cannot be used, or a task that is both main and auxiliary; no dense main task; or an
                auxiliary task of the image level.
        """
        super().__init__(encoder, heads, head_seed)
        self.encoder.requires_grad_(True)
        if not channels:
            raise UserError("the model has no main task; name one beside the auxiliary ones")
        if not set(channels) - set(image_level):
            raise UserError("all main tasks are image-level, so that nothing interacts; use model.kind=multi_task")
        for task, number in channels.items():
            check_new_task(task, self.tasks)
            self.heads.add_task(task, number, head_seed, task in image_level)
        for task in auxiliary:
            check_new_task(task, self.tasks)
            if task in image_level:
                raise UserError(f"task '{task}' is image-level, so that no front end predicts it; make it a main task")
        self.auxiliary = tuple(auxiliary)
        self.deep_strides: tuple[int, ...] = ()

    def dense_channels(self, channels: Mapping[str, int]) -> dict[str, int]:
        """Those of the main tasks that the front end predicts and that interact -> channels of their outputs."""
        return {task: number for task, number in channels.items() if task not in self.image_level}

    def initialise(self) -> None:
        """Fill all but the backbone and the heads."""
        for name, module in self.named_children():
            if name not in ("encoder", "heads"):
                initialise_by_name(module, name, self.head_seed)

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> Outputs:
        """Run the network.

        Args:
            images: (N, 3, H, W) float, normalised by :func:`polyscene.runtime.features.normalise`; any H and W.
            tasks: main tasks whose final outputs are wanted; None for all.

        Returns:
            Final outputs of these tasks, and the first predictions of all tasks, main and auxiliary, at the
            resolution of their features: one level for every entry of `deep_strides`. Image-level tasks have a final
            output alone.

        Raises:
            UserError: no such main task.
        """
        chosen = self.tasks if tasks is None else tuple(tasks)
        for task in chosen:
            self.check_present(task)
        size = (images.shape[-2], images.shape[-1])
        maps, deep = self._maps(images, chosen)
        return Outputs({task: self.heads(maps[task], task, size) for task in chosen}, deep)

    def interact(
        self, image_maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Sequence[Tensor]], tuple[dict[str, Tensor], ...]]:
        """Let the tasks of the front end use each other's features.

        Args:
            image_maps: of the backbone, the finest first.
            tasks: dense main tasks.

        Returns:
            Maps of ``tasks``, as their heads want them; first predictions of all tasks of the front end.
        """
        raise NotImplementedError

    def task_maps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """Task -> its distilled features; of image-level tasks the backbone's."""
        return self._maps(images, tasks)[0]

    def _maps(
        self, images: Tensor, tasks: Sequence[str]
    ) -> tuple[dict[str, Sequence[Tensor]], tuple[dict[str, Tensor], ...]]:
        image_maps, apart = self.encoder(images), self.image_level
        maps, deep = self.interact(image_maps, [task for task in tasks if task not in apart])
        return {**maps, **{task: image_maps for task in tasks if task in apart}}, deep

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters that only this main task uses: its head and the distillation into it.

        Raises:
            UserError: no such main task.
        """
        self.check_present(task)
        for name, parameter in self.named_parameters():
            if _owner(name) == task:
                yield parameter

    def parameter_counts(self) -> ModelParameters:
        """Backbone, front end and feature propagation are shared, those of auxiliary tasks too."""
        shared = 0
        own = {task: {"distillation": 0, "head": 0} for task in self.tasks}
        for name, parameter in self.named_parameters():
            task = _owner(name)
            if task is None:
                shared += parameter.numel()
            else:
                own[task]["head" if name.startswith("heads.") else "distillation"] += parameter.numel()
        return ModelParameters(shared, shared, own)

    def remove_task(self, task: str) -> None:
        """Refused: the other tasks were trained with this task's features.

        Raises:
            UserError: always.
        """
        self.check_present(task)
        raise UserError(f"'{task}' cannot be removed: the other tasks use its features; train a model without it")


def _owner(name: str) -> str | None:
    found = _OWN.search(name)
    return found.group(1) if found else None
