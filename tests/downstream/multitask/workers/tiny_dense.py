"""A tiny dense model and a data set made from its image names, shared by the engine's tests and their processes."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.data.transforms import Augmentation
from polyscene.downstream.multitask.models.base import Outputs
from polyscene.downstream.multitask.tasks import Target, depth, edges, normals, segmentation
from polyscene.runtime.distributed import World

RECIPE = Augmentation((24, 32), scales=(0.75, 1.0, 1.25))
SIZES = ((30, 44), (44, 30), (33, 47))


def specs():
    found = (segmentation.task(4, ("a", "b", "c", "d")), depth.task(), normals.task(), edges.task(0.05))
    return {spec.name: spec for spec in found}


@dataclass(frozen=True)
class Made:
    """Targets computed from the image's number: reproducible, no files."""

    task: str

    def missing(self, name):
        return []

    def read(self, name, size):
        generator = torch.Generator().manual_seed(int(name) * 7 + len(self.task))
        valid = torch.rand(size, generator=generator) > 0.1
        if self.task == "segmentation":
            return Target(torch.where(valid, torch.randint(0, 4, size, generator=generator), 0), valid)
        if self.task == "edges":
            return Target((torch.rand(1, *size, generator=generator) > 0.8).float(), torch.ones(size, dtype=torch.bool))
        values = torch.randn(3 if self.task == "normals" else 1, *size, generator=generator)
        values = nn.functional.normalize(values, dim=0) if self.task == "normals" else values.abs() + 0.5
        return Target(torch.where(valid, values, 0), valid)


def make_images(folder, count=8, tasks=None):
    """``count`` images of three sizes below ``folder``; the files are written once."""
    chosen = {name: spec for name, spec in specs().items() if tasks is None or name in tasks}
    names = tuple(f"{i:02}" for i in range(count))
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        if not (folder / f"{name}.png").exists():
            pixels = np.random.default_rng(i).integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
    sources = {name: Made(name) for name in chosen}
    return DenseImages("made", folder, "val", names, "{name}.png", chosen, sources)


class TinyDense(nn.Module):
    """A frozen convolution, a trained one with BatchNorm, and a 1x1 head per task; optionally deep outputs."""

    def __init__(self, channels, frozen_norm=True, deep=(), seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Conv2d(3, 6, 3, 1, 1).requires_grad_(False)
        self.body = nn.Conv2d(6, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen_norm = frozen_norm
        self.tasks = nn.ModuleDict({name: nn.Conv2d(8, width, 1) for name, width in channels.items()})
        self.deep = nn.ModuleDict({name: nn.Conv2d(8, specs()[name].channels, 1) for name in deep})

    def train(self, mode=True):
        super().train(mode)
        if self.frozen_norm:
            self.norm.eval()
        return self

    def forward(self, images, tasks=None):
        maps = self.norm(self.body(self.frozen(images).relu())).relu()
        chosen = tuple(self.tasks) if tasks is None else tasks

        def full(x):
            return nn.functional.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=False)

        final = {name: full(self.tasks[name](maps)) for name in chosen}
        return Outputs(final, ({name: head(maps) for name, head in self.deep.items()},) if self.deep else ())


def make_model(tasks=None, **options):
    channels = {name: spec.channels for name, spec in specs().items() if tasks is None or name in tasks}
    return TinyDense(channels, **options).to(memory_format=torch.channels_last)


def alone():
    return World(rank=0, size=1, device=torch.device("cpu"))
