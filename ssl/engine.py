"""Pretraining: batches in, checkpoints, metrics and a trained backbone out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyscene.runtime.finite import fail
from polyscene.runtime.loop import LoopPlan, Training, run_loop
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.window import WindowMean

from .batches import ImageBatch
from .loading import UnreadableLog
from .monitor import effective_rank, embedding_std, neighbour_label_share
from .overlap import SideStream
from .schedule import cosine_schedule
from .state import TrainingState
from .step import StepOutput, StepRunner
from .views.render import render_views
from .views.spec import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Schedule(LoopPlan):
    """When things happen, and the learning rate: a linear warm-up, then half a cosine.

    Attributes:
        total_steps: length of the learning-rate schedule; ``end_step`` may be earlier for a smoke run.
        learning_rate: peak.
        warmup_steps: of the learning rate.
    """

    total_steps: int
    learning_rate: float
    warmup_steps: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return cosine_schedule(
            step, base=self.learning_rate, total_steps=self.total_steps, warmup_steps=self.warmup_steps
        )


def train(
    runner: StepRunner,
    state: TrainingState,
    batches: Iterable[ImageBatch],
    views: ViewSpec,
    schedule: Schedule,
    run: RunDirectory,
    *,
    unreadable: UnreadableLog | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stop: StopRequest | None = None,
) -> bool:
    """Train from ``state.step`` to ``schedule.end_step``, or until asked to stop; saves at the end either way.

    Args:
        runner: the step.
        state: what is trained; its ``step`` moves on.
        batches: raw images with sampled views, one batch a step, starting at ``state.step``.
        views: what ``batches`` sampled.
        schedule: when to save, log and evaluate.
        run: where metrics and checkpoints go.
        unreadable: collects images that could not be decoded and ends the run past its share.
        evaluate: called every ``evaluate_every_steps`` on all processes; returns metrics.
        stop: polled once a step.

    Returns:
        True if ``end_step`` was reached, False if the run was asked to stop before.

    Raises:
        RunFailed: a loss was not finite; a reproducing batch lies in the run directory.
        UserError: too many unreadable images, or the disk is full.
    """
    training = _Pretraining(runner, state, views, schedule, run, unreadable)
    finished = run_loop(training, batches, schedule, run, evaluate=evaluate, stop=stop)
    if unreadable:
        run.warn(f"{len(unreadable)} of {unreadable.total} images could not be decoded; see '{unreadable.path}'")
    return finished


class _Pretraining(Training[ImageBatch]):
    """What a step of :func:`train` is."""

    def __init__(
        self,
        runner: StepRunner,
        state: TrainingState,
        views: ViewSpec,
        schedule: Schedule,
        run: RunDirectory,
        unreadable: UnreadableLog | None,
    ):
        self.runner, self.state, self.views, self.schedule, self.run = runner, state, views, schedule, run
        self.unreadable = unreadable
        self.world = state.world
        self.side = SideStream(self.world.device)
        self.window = WindowMean()
        self.recent: dict[int, tuple[Tensor, list[Tensor]]] = {}  # step -> image numbers and views
        self.last: tuple[StepOutput, Tensor | None] | None = None  # with the labels
        self.collapsed_windows = 0
        runner.on_nonfinite = self._abort

    def settle(self) -> None:
        self.runner.settle()

    def one_step(self, batch: ImageBatch) -> int:
        self._report_unreadable(batch)
        rendered, labels = self._rendered(batch)
        step = self.state.step
        # A loss may be looked at one step late.
        self.recent = {n: kept for n, kept in self.recent.items() if n == step - 1} | {step: (batch.indices, rendered)}
        output = self.runner.step(rendered, step=step, learning_rate=self.schedule.rate(step), labels=labels)
        self.window.add(output.means)
        self.last = (output, labels)
        return len(batch)

    def _rendered(self, batch: ImageBatch) -> tuple[list[Tensor], Tensor | None]:
        """Views and labels on the device."""

        def work() -> list[Tensor]:
            moved = batch.to(self.world.device, non_blocking=True)
            views = render_views(moved.images(), moved.params, self.views, self.world.device)
            return views if moved.labels is None else [*views, moved.labels]

        views = list(self.side.run(work, reads=[batch.pixels]))
        labels = None if batch.labels is None else views.pop()
        return views, labels

    def _report_unreadable(self, batch: ImageBatch) -> None:
        if self.unreadable is None:
            return
        # A host-side message only where something is wrong somewhere.
        if self.world.maximum(len(batch.unreadable)):
            found = [item for items in self.world.gather_objects(batch.unreadable) for item in items]
            first = not self.unreadable
            self.unreadable.add(found)
            if first:
                name, reason = found[0][1].split("\t")
                self.run.warn(
                    f"'{name}' cannot be decoded ({reason}): another image takes its place, as for all that are listed "
                    f"in '{self.unreadable.path}'"
                )

    def window_metrics(self) -> dict[str, float]:
        self.settle()  # no numbers of a loss that is not finite
        assert self.last is not None
        output, labels = self.last
        queue = self.state.model.queue
        extra = [embedding_std(output.embeddings), effective_rank(output.features), queue.mean_age(self.state.step)]
        found = output.neighbour_labels
        if found is not None and labels is not None:
            extra.append(neighbour_label_share(found, labels[: found.shape[0]]))
        values = torch.cat([self.window.take(), torch.stack([e.float() for e in extra])])
        values = self.world.mean(values).tolist()
        names = ["loss", "loss_instance", "loss_neighbour", "top1", "embedding_std", "feature_rank", "queue_age"]
        metrics = dict(zip([*names, "neighbour_label_share"], values))
        self._warn_of_collapse(metrics["embedding_std"])
        share = metrics.get("neighbour_label_share")
        if share is not None and share != share:  # NaN: nothing written yet
            del metrics["neighbour_label_share"]
        return metrics

    def headline(self, metrics: dict[str, float]) -> str:
        return f"top-1 {100 * metrics['top1']:.0f}%"

    def _warn_of_collapse(self, spread: float) -> None:
        # Embeddings of a new network are alike, and first move together: only a lasting state is worth a warning.
        self.collapsed_windows = self.collapsed_windows + 1 if spread < 0.02 else 0
        if self.collapsed_windows == 3:
            self.run.warn(
                f"embeddings are collapsing (standard deviation {spread:.3f} of 1 at step {self.state.step}); "
                "if this lasts, lower optim.lr, warm it up (optim.warmup_epochs), or lower neighbours.weight"
            )

    def _abort(self, step: int, loss: Tensor) -> None:
        indices, rendered = self.recent[step]
        content = {"indices": indices, "views": [view.cpu() for view in rendered]}
        fail(self.run.path, self.world, step, loss, self.schedule.rate(step), self.state.model, content)
