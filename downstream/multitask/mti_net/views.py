"""A network that stops at the front end of one scale, to be judged like any other (thesis, table 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polyscene.runtime.errors import UserError

from ..heads.blocks import upsample
from ..models.base import Outputs
from .interaction import InteractionModel


class FrontEndView(nn.Module):
    """The first predictions at one scale as final outputs, of main and auxiliary tasks; shares the model's weights.

    Attributes:
        tasks: all tasks of the front end; those of the image level have none.
    """

    def __init__(self, model: InteractionModel, stride: int):
        """Look at a model from outside.

        Args:
            model: stays as it is.
            stride: image pixels per cell of the features; one of ``model.deep_strides``.

        Raises:
            UserError: no front end at this scale.
        """
        super().__init__()
        if stride not in model.deep_strides:
            known = ", ".join(f"1/{known}" for known in model.deep_strides)
            raise UserError(f"the model has no front end at 1/{stride}; choose {known}")
        self.model = model
        self.level = model.deep_strides.index(stride)
        self.tasks = (*(task for task in model.tasks if task not in model.image_level), *model.auxiliary)

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> Outputs:
        """Normalised images (N, 3, H, W) -> predictions (N, channels, H, W) float32; nothing is deep.

        Args:
            images: any H and W.
            tasks: main or auxiliary; None for all.

        Raises:
            UserError: no such task.
        """
        chosen = self.tasks if tasks is None else tuple(tasks)
        for task in chosen:
            if task not in self.tasks:
                raise UserError(f"task '{task}' is not in this model, which has: {', '.join(self.tasks)}")
        size = (images.shape[-2], images.shape[-1])
        maps = self.model.interact(self.model.encoder(images), ())[1][self.level]
        return Outputs({task: upsample(maps[task], size) for task in chosen})
