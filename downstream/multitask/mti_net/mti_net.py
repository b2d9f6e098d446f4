"""MTI-Net: tasks interact at every scale of the backbone (thesis, section 5.2 and figure 5.4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .aggregation import AggregationHead
from .backbones import MultiScaleMaps
from .blocks import basic_block
from .distillation import Distillation
from .fpm import NARROWING, FeaturePropagation
from .front_end import FrontEnd
from .heads import MultiScaleHeads
from .interaction import InteractionModel


class Scale(nn.Module):
    """The parts of the network at one scale; the propagation to the next finer one may be missing."""

    def __init__(self, front_end: FrontEnd, distillation: Distillation, propagation: FeaturePropagation | None):
        super().__init__()
        self.front_end, self.distillation, self.propagation = front_end, distillation, propagation


class MTINet(InteractionModel):
    """Front ends from the coarsest scale to the finest, distillation at each, and aggregation of all.

    With one scale this is a network like PAD-Net (thesis, table 5.2); its modules follow the backbone's maps.
    """

    def __init__(
        self,
        encoder: MultiScaleMaps,
        channels: Mapping[str, int],
        auxiliary: Mapping[str, int] | None = None,
        *,
        fpm: bool = True,
        fpm_softmax: str = "tasks",
        fpm_narrowing: int = NARROWING,
        head_seed: int = 0,
        image_level: Collection[str] = (),
    ):
        """Make a network whose decoder starts from random values.

        Args:
            encoder: the backbone; its maps are the scales that are used.
            channels: main task -> channels of its output.
            auxiliary: auxiliary task -> channels of its output.
            fpm: whether features go from a scale to the next finer one; without, scales meet in the heads only.
            fpm_softmax, fpm_narrowing: see `FeaturePropagation`.
            head_seed: of all initial values but the backbone's.
            image_level: those of the main tasks that have one output an image, see `InteractionModel`.

        Raises:
            UserError: see `InteractionModel`.
            ValueError: a wrong ``fpm_softmax`` or ``fpm_narrowing``.
        """
        auxiliary = auxiliary or {}
        heads = MultiScaleHeads(partial(AggregationHead, encoder.channels), encoder.channels)
        super().__init__(encoder, heads, channels, auxiliary, head_seed, image_level)
        self.deep_strides = encoder.strides
        dense = self.dense_channels(channels)
        everyone = {**dense, **auxiliary}
        with torch.random.fork_rng(devices=[]):  # random values that are overwritten
            self.scales = nn.ModuleDict()
            for place, (stride, width) in enumerate(zip(encoder.strides, encoder.channels)):
                carried = encoder.channels[place + 1] if fpm and place + 1 < len(encoder.channels) else 0
                propagation = None
                if fpm and place > 0:
                    propagation = FeaturePropagation(tuple(everyone), width, fpm_softmax, fpm_narrowing)
                self.scales[str(stride)] = Scale(
                    FrontEnd(everyone, width, carried, width, basic_block),
                    Distillation(tuple(dense), tuple(everyone), width),
                    propagation,
                )
        self.initialise()

    def interact(
        self, image_maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Sequence[Tensor]], tuple[dict[str, Tensor], ...]]:
        """Backbone's maps -> task -> distilled features of every scale, and the first predictions at every scale."""
        distilled: dict[str, list[Tensor]] = {task: [] for task in tasks}
        deep: list[dict[str, Tensor]] = []
        carried = None
        for scale, image_map in zip(reversed(self.scales.values()), reversed(image_maps)):
            features = scale.front_end(image_map, carried)
            deep.insert(0, scale.front_end.predict(features))
            carried = scale.propagation(features) if scale.propagation is not None else None
            for task in tasks:
                distilled[task].insert(0, scale.distillation(features, task))
        return distilled, tuple(deep)
