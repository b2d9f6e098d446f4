"""Multi-task training: batches in, checkpoints, metrics and a trained model out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from polyscene.runtime.batch_norm import averaged_statistics
from polyscene.runtime.finite import fail
from polyscene.runtime.loop import Training, run_loop
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.window import WindowMean

from .data.transforms import Batch
from .schedule import Schedule
from .state import MultitaskState
from .step import DenseStep


def train(
    step: DenseStep,
    state: MultitaskState,
    batches: Iterable[Batch],
    schedule: Schedule,
    run: RunDirectory,
    *,
    stop: StopRequest | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> bool:
    """Train from ``state.step`` to ``schedule.end_step``, or until asked to stop; saves at the end either way.

    Writes to metrics.jsonl: ``loss`` (weighted sum), ``loss_TASK`` (unweighted), ``weight_TASK``, ``learning_rate``,
    ``epoch``, ``images_per_second``, ``data_wait_percent``; means since the last line.

    Args:
        step: the step.
        state: what is trained; its ``step`` moves on.
        batches: one a step, starting at ``state.step``; on any device.
        schedule: when to save, log and evaluate.
        run: where metrics and checkpoints go.
        stop: polled once a step.
        evaluate: called every ``evaluate_every_steps`` on all processes, with BatchNorm statistics averaged over them;
            returns metrics.

    Returns:
        True if ``end_step`` was reached, False if the run was asked to stop before.

    Raises:
        RunFailed: a loss was not finite (a reproducing batch lies in the run directory), or the disk is full.
        UserError: a batch could not be read.
    """
    training = _MultitaskTraining(step, state, schedule, run)
    return run_loop(training, batches, schedule, run, evaluate=_averaged(evaluate, state), stop=stop)


def _averaged(
    evaluate: Callable[[], dict[str, float]] | None, state: MultitaskState
) -> Callable[[], dict[str, float]] | None:
    if evaluate is None:
        return None

    def run() -> dict[str, float]:
        with averaged_statistics(state.model, state.world):
            return evaluate()

    return run


class _MultitaskTraining(Training[Batch]):
    """What a step of :func:`train` is."""

    def __init__(self, step: DenseStep, state: MultitaskState, schedule: Schedule, run: RunDirectory):
        self.step, self.state, self.schedule, self.run = step, state, schedule, run
        self.world = state.world
        self.window = WindowMean()
        self.names: list[str] = []
        self.recent: dict[int, Batch] = {}
        step.on_nonfinite = self._abort

    def settle(self) -> None:
        self.step.settle()

    def one_step(self, batch: Batch) -> int:
        device = self.world.device
        batch = batch.to(device, non_blocking=True)
        # On a GPU a loss is looked at one step late: the batch before is kept until then.
        self.recent = {step: kept for step, kept in self.recent.items() if step == self.state.step - 1}
        self.recent[self.state.step] = batch
        losses = self.step.step(batch, step=self.state.step, learning_rate=self.schedule.rate(self.state.step))
        self.names = list(losses.weights)
        self.window.add(
            torch.stack([losses.total, *(losses.tasks[name] for name in self.names), *losses.weights.values()])
        )
        return len(batch.names)

    def window_metrics(self) -> dict[str, float]:
        values = self.world.mean(self.window.take()).tolist()
        names = [f"{what}_{name}" for what in ("loss", "weight") for name in self.names]
        return dict(zip(["loss", *names], values))

    def headline(self, metrics: dict[str, float]) -> str:
        return "  ".join(f"{name} {metrics[f'loss_{name}']:.3f}" for name in self.names)

    def _abort(self, step: int, loss: Tensor) -> None:
        batch = self.recent[step]
        content = {
            "names": list(batch.names),
            "images": batch.images.cpu(),
            "targets": {name: (target.values.cpu(), target.valid.cpu()) for name, target in batch.targets.items()},
        }
        fail(self.run.path, self.world, step, loss, self.schedule.rate(step), self.state.model, content)
