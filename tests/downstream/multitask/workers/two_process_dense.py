"""Run under torchrun: a few steps on this rank's share of the batches, then an evaluation; every rank writes both."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_dense import RECIPE, make_images, make_model

from polyscene.downstream.multitask.evaluation import measure
from polyscene.downstream.multitask.loading import train_batches
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.step import DenseStep
from polyscene.runtime.batch_norm import averaged_statistics
from polyscene.runtime.distributed import join_world

STEPS = 4


def run(world, folder, kind):
    images = make_images(Path(folder))
    model = make_model(frozen_norm=kind == "frozen")
    optimizer = make_optimizer(model, "sgd", learning_rate=0.05)
    step = DenseStep(model, optimizer, images.tasks, {"depth": 0.5}, world, sync_batch_norm=kind == "sync")
    batches = train_batches(images, RECIPE, batch_size=4, seed=3, start_step=0, end_step=STEPS, workers=0, world=world)
    losses = []
    for number, batch in enumerate(batches):
        found = step.step(batch, step=number, learning_rate=0.05)
        losses.append(world.mean(torch.stack([found.total, *found.tasks.values()])).tolist())
    with averaged_statistics(model, world):
        metrics = measure(
            model, images, tasks=list(images.tasks), device=world.device, world=world, batch_size=3, multiple=8
        )
    scores = {name: metric.compute() for name, metric in metrics.items()}
    return {"losses": losses, "model": model.state_dict(), "scores": scores}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        for kind in ("frozen", "sync"):
            torch.save(run(world, sys.argv[1], kind), f"{sys.argv[2]}-{kind}-{world.rank}.pt")
