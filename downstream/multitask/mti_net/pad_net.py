"""PAD-Net: tasks interact once, on the fused scales of the backbone (thesis, section 3.1.3).

Xu et al., "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network", CVPR 2018; with a backbone of several
scales as the thesis compares it to MTI-Net (section 5.3.1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..heads.blocks import upsample
from .aggregation import ScaleFusion
from .backbones import MultiScaleMaps
from .blocks import bottleneck
from .distillation import Distillation
from .front_end import FrontEnd
from .heads import MultiScaleHeads
from .interaction import InteractionModel

DISTILLATIONS = ("thesis", "published")


class PADNetHead(nn.Module):
    """Two bottleneck blocks and a 1x1 prediction on the distilled features of one task."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.refine = nn.Sequential(bottleneck(width, width), bottleneck(width, width))
        self.prediction = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """One map (N, width, H, W) -> (N, channels, *size) float32 raw output."""
        return upsample(self.prediction(self.refine(maps[0])).float(), size)


class PADNet(InteractionModel):
    """Scales fused at the finest one; front end, distillation and heads there."""

    def __init__(
        self,
        encoder: MultiScaleMaps,
        channels: Mapping[str, int],
        auxiliary: Mapping[str, int] | None = None,
        *,
        distillation: str = "thesis",
        width: int = 256,
        head_seed: int = 0,
        image_level: Collection[str] = (),
    ):
        """Make a network whose decoder starts from random values.

        Args:
            encoder: the backbone.
            channels: main task -> channels of its output.
            auxiliary: auxiliary task -> channels of its output.
            distillation: ``thesis``: equation 3.2; ``published``: the code's, with the second convolution of
                equation 5.1.
            width: channels of the features of every task; a multiple of 4.
            head_seed: of all initial values but the backbone's.
            image_level: those of the main tasks that have one output an image, see `InteractionModel`.

        Raises:
            UserError: see `InteractionModel`.
            ValueError: an unknown ``distillation``, or a width that is no multiple of 4.
        """
        if distillation not in DISTILLATIONS:
            raise ValueError(f"distillation={distillation}: choose {' or '.join(DISTILLATIONS)}")
        if width < 4 or width % 4:
            raise ValueError(f"width={width}: give a multiple of 4")
        auxiliary = auxiliary or {}
        heads = MultiScaleHeads(partial(PADNetHead, width), encoder.channels)
        super().__init__(encoder, heads, channels, auxiliary, head_seed, image_level)
        self.deep_strides = encoder.strides[:1]
        dense = self.dense_channels(channels)
        everyone = {**dense, **auxiliary}
        with torch.random.fork_rng(devices=[]):  # random values that are overwritten
            self.fuse = ScaleFusion(encoder.channels)
            self.front_end = FrontEnd(everyone, self.fuse.width, 0, width, bottleneck)
            self.distillation = Distillation(tuple(dense), tuple(everyone), width, distillation == "published")
        self.initialise()

    def interact(
        self, image_maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Sequence[Tensor]], tuple[dict[str, Tensor], ...]]:
        """Backbone's maps -> task -> its distilled features, and the first predictions."""
        features = self.front_end(self.fuse(image_maps))
        deep = self.front_end.predict(features)
        return {task: [self.distillation(features, task)] for task in tasks}, (deep,)
