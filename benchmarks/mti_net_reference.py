"""MTI-Net's decoder and losses in the straightforward way: what `mti_net_step.py` compares with.

Section 5.2 of the thesis word by word, over the modules of the project's model: every task's module one after another,
maps resized and concatenated before the 1x1 convolution that joins the scales, `F.cross_entropy` of the resized logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from polyscene.downstream.multitask.models.base import Outputs
from polyscene.downstream.multitask.mti_net.fpm import FeaturePropagation
from polyscene.downstream.multitask.mti_net.mti_net import MTINet
from polyscene.downstream.multitask.tasks import Target, TaskSpec

_IGNORED = 255


def reference_outputs(model: MTINet, maps: Sequence[Tensor], size: tuple[int, int]) -> Outputs:
    """The decoder as figure 5.4 shows it: from the coarsest scale to the finest, task by task."""
    distilled: dict[str, list[Tensor]] = {task: [] for task in model.tasks}
    deep: list[dict[str, Tensor]] = []
    carried = None
    for scale, image_map in zip(reversed(model.scales.values()), reversed(maps)):
        features = {}
        for task, refine in scale.front_end.refine.items():
            x = image_map
            if carried is not None:
                x = torch.cat([x, _resize(carried[task], x.shape[-2:])], dim=1)
            features[task] = refine(x)
        deep.insert(0, {task: layer(features[task]) for task, layer in scale.front_end.prediction.items()})
        carried = None if scale.propagation is None else reference_propagation(scale.propagation, features)
        for task in model.tasks:
            x = features[task]
            for other, attention in scale.distillation.tasks[task].items():
                x = x + torch.sigmoid(attention.mask(features[other])) * attention.transform(features[other])
            distilled[task].insert(0, x)
    final = {}
    for task in model.tasks:
        head, finest = model.heads.tasks[task], distilled[task][0].shape[-2:]
        joined = torch.cat([_resize(x, finest) for x in distilled[task]], dim=1)
        fused = torch.relu(head.fuse.join.norm(head.fuse.join.convolution(joined)))
        final[task] = _resize(head.prediction(fused), size)
    return Outputs(final, tuple(deep))


def reference_propagation(module: FeaturePropagation, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Figure 5.5: harmonisation, softmax over the tasks, squeeze-and-excitation and a residual for every task."""
    joined = torch.cat(list(features.values()), dim=1)
    scores = module.attention(joined).unflatten(1, (len(features), -1))
    shared = module.reduce(joined * torch.softmax(scores, dim=1).flatten(1, 2))
    return {task: features[task] + gate(shared) for task, gate in module.gates.items()}


def reference_losses(outputs: Outputs, targets: Mapping[str, Target], specs: Mapping[str, TaskSpec]) -> Tensor:
    """Cross-entropy as torch has it; the project's functions where torch has none."""
    total = torch.zeros((), device=next(iter(targets.values())).values.device)
    for level in (outputs.final, *outputs.deep):
        for task, output in level.items():
            values, valid = targets[task]
            resized = _resize(output.float(), valid.shape[-2:])
            if task == "segmentation":
                labels = values.masked_fill(~valid, _IGNORED)
                total = total + F.cross_entropy(resized, labels, ignore_index=_IGNORED)
            else:
                total = total + specs[task].loss(resized, values, valid)
    return total


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
