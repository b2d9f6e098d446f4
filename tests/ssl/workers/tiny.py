"""A tiny encoder and deterministic views, shared by the step tests and their worker processes."""

import itertools

import numpy as np
import torch
from torch import nn

from polyscene.runtime.distributed import World
from polyscene.ssl.batches import ImageBatch, pack_images
from polyscene.ssl.moco.encoder import Encoder
from polyscene.ssl.moco.model import MoCo
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.moco.queue import KeyQueue
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views.sampling import sample_views


class TinyBackbone(nn.Module):
    """Two convolutions with BatchNorm, average-pooled to 12 features."""

    num_features = 12

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1, bias=False)
        )
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        return self.norm(self.body(x)).relu().mean(dim=(2, 3))


def make_model(queue=24, momentum=0.9):
    torch.manual_seed(0)
    return MoCo(Encoder(TinyBackbone(), 6), KeyQueue(queue, 6, 12, labels=True), momentum)


def make_runner(model, world, *, batch, kind="auto", group=128, accumulate=1, k=3, weight=0.4, start=1, compile=False):
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    plan = plan_normalization(kind, group, batch // accumulate, world.size)
    losses = LossSettings(temperature=0.2, k=k, neighbour_weight=weight, neighbour_start=start)
    return StepRunner(model, optimizer, losses, plan, world, seed=5, accumulate=accumulate, compile=compile)


def make_views(step, batch=8, large=2, small=3):
    generator = torch.Generator().manual_seed(100 + step)
    scene = torch.randn(batch, 1, 3, 1, 1, generator=generator)
    big = scene + torch.randn(batch, large, 3, 16, 16, generator=generator)
    return [big, scene + torch.randn(batch, small, 3, 8, 8, generator=generator)] if small else [big]


def labels(step, batch=8):
    return torch.arange(batch) + step


def alone():
    return World(rank=0, size=1, device=torch.device("cpu"))


def image_batches(views, size):
    """Batches of images of many sizes, with their views sampled, without end."""
    generator = np.random.default_rng(0)
    for step in itertools.count():
        shapes = generator.integers(20, 40, (size, 2)).tolist()
        pixels, sizes = pack_images([torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes])
        indices = torch.arange(size) + size * step
        params = sample_views(0, 0, indices.numpy(), sizes.numpy(), views)
        yield ImageBatch(pixels, sizes, indices, indices % 2, indices, [], step, 0, params)
