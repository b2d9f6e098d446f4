"""Run under torchrun: a few steps on this rank's share of the batches, then an evaluation; every rank writes both."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_dense import RECIPE, make_images, make_model, specs

from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.downstream.multitask.evaluation import measure
from polyscene.downstream.multitask.loading import train_batches
from polyscene.downstream.multitask.mti_net.backbones import random_backbone
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions, build_multi_scale_model
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import DenseStep
from polyscene.runtime.batch_norm import averaged_statistics
from polyscene.runtime.distributed import join_world

STEPS = 4
KINDS = ("frozen", "sync", "mti_net", "gradnorm", "dtp")
"""``frozen``: no BatchNorm; the others are synchronised; ``mti_net`` has auxiliary tasks and four scales, at which the
last two balance."""
MAIN = ("segmentation", "depth")


def mti_net():
    channels = {name: spec.channels for name, spec in specs().items()}
    auxiliary = {name: channels.pop(name) for name in list(channels) if name not in MAIN}
    options = MultiScaleOptions("mti_net", scales=(4, 8), pyramid_width=8)
    return build_multi_scale_model(options, random_backbone("resnet10t", 0), channels, auxiliary)


def run(world, folder, kind):
    images = make_images(Path(folder))
    interacts = kind not in ("frozen", "sync")
    model = mti_net() if interacts else make_model(frozen_norm=kind == "frozen")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rate = 0.01 if interacts else 0.05  # rounding is amplified by depth and by the size of steps
    optimizer = make_optimizer(model, "sgd", learning_rate=rate)
    strategy = kind if kind in ("gradnorm", "dtp") else "fixed"
    balancer = make_balancer(strategy, [*images.tasks], {"depth": 0.5})
    tasks = MAIN if interacts else tuple(images.tasks)
    step = DenseStep(model, optimizer, images.tasks, balancer, world, tasks=tasks, sync_batch_norm=kind != "frozen")
    # DTP counts right pixels: once weights differ by rounding, so may the counts, by whole pixels.
    steps = 1 if kind == "dtp" else STEPS
    batches = train_batches(images, RECIPE, batch_size=4, seed=3, start_step=0, end_step=steps, workers=0, world=world)
    losses, weights = [], []
    for number, batch in enumerate(batches):
        found = step.step(batch, step=number, learning_rate=rate)
        losses.append(world.mean(torch.stack([found.total, *found.tasks.values()])).tolist())
        weights.append(torch.stack([*found.weights.values()]).tolist())
    with averaged_statistics(model, world):
        metrics = measure(model, images, tasks=list(tasks), device=world.device, world=world, batch_size=3, multiple=32)
    scores = {name: metric.compute() for name, metric in metrics.items()}
    return {"losses": losses, "weights": weights, "model": model.state_dict(), "start": start, "scores": scores}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        for kind in KINDS:
            torch.save(run(world, sys.argv[1], kind), f"{sys.argv[2]}-{kind}-{world.rank}.pt")
