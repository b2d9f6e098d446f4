"""Run under torchrun: a few steps on this rank's share of the batch; every rank writes what it ended with."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny import labels, make_model, make_runner, make_views

from polyscene.runtime.distributed import join_world


def main(out, kind):
    with join_world("cpu") as world:
        model = make_model()
        runner = make_runner(model, world, batch=4, kind=kind, group=4)
        mine = slice(world.rank * 4, world.rank * 4 + 4)
        losses = []
        for step in range(6):
            views = [view[mine] for view in make_views(step)]
            output = runner.step(views, step=step, learning_rate=0.1, labels=labels(step)[mine])
            losses.append(world.mean(output.means).tolist())
        content = {"losses": losses, "query": model.query.state_dict(), "queue": model.queue.state_dict()}
        torch.save(content, f"{out}-{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])
