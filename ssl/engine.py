"""The training loop: batches in, checkpoints, metrics and a trained backbone out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyscene.runtime.checkpoint import save_checkpoint
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.run import RunDirectory

from .batches import ImageBatch
from .loading import UnreadableLog
from .monitor import WindowMean, effective_rank, embedding_std, neighbour_label_share
from .schedule import cosine_schedule
from .state import TrainingState
from .step import StepOutput, StepRunner
from .views.render import render_views
from .views.spec import ViewSpec


@dataclass(frozen=True)
class Schedule:
    """When things happen, in optimiser steps.

    Attributes:
        steps_per_epoch: optimiser steps of one pass over the images.
        total_steps: length of the learning-rate schedule.
        end_step: where this run stops (``total_steps``, or earlier for a smoke run).
        learning_rate: peak.
        warmup_steps: of the learning rate.
        log_every: steps between two lines of metrics.
        save_every_steps: steps between two checkpoints, or None.
        save_every_minutes: minutes between two checkpoints, or None.
        keep_last: newest checkpoints kept.
        keep_every_steps: checkpoints at multiples of this are written and kept for ever, or None.
        evaluate_every_steps: steps between two evaluations, or None.
    """

    steps_per_epoch: int
    total_steps: int
    end_step: int
    learning_rate: float
    warmup_steps: int = 0
    log_every: int = 50
    save_every_steps: int | None = None
    save_every_minutes: float | None = 15.0
    keep_last: int = 2
    keep_every_steps: int | None = None
    evaluate_every_steps: int | None = None

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return cosine_schedule(
            step, base=self.learning_rate, total_steps=self.total_steps, warmup_steps=self.warmup_steps
        )

    def save_is_due(self, done: int) -> bool:
        """Whether a checkpoint belongs after ``done`` steps, the clock aside."""
        return any(every and done % every == 0 for every in (self.save_every_steps, self.keep_every_steps))


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
    loop = _Loop(runner, state, views, schedule, run, unreadable, evaluate, stop or StopRequest())
    return loop.run_steps(batches)


class _Loop:
    """The moving parts of :func:`train`."""

    def __init__(
        self,
        runner: StepRunner,
        state: TrainingState,
        views: ViewSpec,
        schedule: Schedule,
        run: RunDirectory,
        unreadable: UnreadableLog | None,
        evaluate: Callable[[], dict[str, float]] | None,
        stop: StopRequest,
    ):
        self.runner, self.state, self.views, self.schedule, self.run = runner, state, views, schedule, run
        self.unreadable, self.evaluate, self.stop = unreadable, evaluate, stop
        self.world = state.world
        self.window = WindowMean()
        self.recent: list[tuple[ImageBatch, list[Tensor]]] = []
        runner.on_nonfinite = self._abort
        self._start_clocks()
        self.collapsed_windows = 0

    def _start_clocks(self) -> None:
        self.window_start = time.perf_counter()
        self.window_wait = 0.0
        self.window_images = 0
        self.last_save = time.monotonic()

    def run_steps(self, batches: Iterable[ImageBatch]) -> bool:
        end = self.schedule.end_step
        saved_at = None
        with ProgressBar(self.run.console, "", end, self.state.step) as bar:
            for batch in self._timed(batches):
                output = self._one_step(batch)
                bar.update(self.state.step)
                if self.state.step % self.schedule.log_every == 0 or self.state.step == end:
                    bar.update(self.state.step, self._log(output, batch))
                if self.evaluate and _due(self.state.step, self.schedule.evaluate_every_steps, end):
                    self._evaluate()
                action = self._agree_on_action()
                if action:
                    self._save()
                    saved_at = self.state.step
                if action == _STOP:
                    return self.state.step >= end
                if self.state.step >= end:
                    break
        if saved_at != self.state.step:
            self._save()
        return True

    def _timed(self, batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.window_wait += time.perf_counter() - start
            yield batch

    def _one_step(self, batch: ImageBatch) -> StepOutput:
        self._report_unreadable(batch)
        device = self.world.device
        batch = batch.to(device, non_blocking=True)
        rendered = render_views(batch.images(), batch.params, self.views, device)
        self.recent = [*self.recent[-1:], (batch, rendered)] if device.type == "cuda" else [(batch, rendered)]
        output = self.runner.step(
            rendered,
            step=self.state.step,
            learning_rate=self.schedule.rate(self.state.step),
            labels=None if batch.labels is None else batch.labels.to(device, non_blocking=True),
        )
        self.window.add(output.means)
        self.window_images += batch.indices.shape[0] * self.world.size
        self.state.step += 1
        return output

    def _report_unreadable(self, batch: ImageBatch) -> None:
        if self.unreadable is None:
            return
        # A host-side message only where something is wrong somewhere.
        if self.world.maximum(len(batch.unreadable)):
            found = [item for items in self.world.gather_objects(batch.unreadable) for item in items]
            self.unreadable.add(found)

    def _agree_on_action(self) -> int:
        wanted = _NOTHING
        if self.schedule.save_is_due(self.state.step):
            wanted = _SAVE
        minutes = self.schedule.save_every_minutes
        if minutes and self.world.is_main and time.monotonic() - self.last_save > 60 * minutes:
            wanted = _SAVE
        if self.stop.signal is not None:
            wanted = _STOP
        return self.world.maximum(wanted)

    def _save(self) -> None:
        self.runner.settle()
        content = self.state.snapshot(self.schedule.steps_per_epoch)
        failure = None
        if self.world.is_main:
            try:
                save_checkpoint(
                    self.run.checkpoints,
                    self.state.step,
                    content,
                    keep_last=self.schedule.keep_last,
                    keep_every_steps=self.schedule.keep_every_steps,
                )
            except UserError as error:
                failure = str(error)
        # Every process must know, or the others would wait for rank 0 for ever.
        failures = [f for f in self.world.gather_objects(failure) if f]
        if failures:
            raise RunFailed(failures[0])
        self.last_save = time.monotonic()

    def _log(self, output: StepOutput, batch: ImageBatch) -> str:
        queue = self.state.model.queue
        extra = [embedding_std(output.embeddings), effective_rank(output.features), queue.mean_age(self.state.step)]
        if output.queue_labels is not None and output.neighbours is not None and batch.labels is not None:
            shown = batch.labels.to(self.world.device)[: output.neighbours.shape[0]]
            extra.append(neighbour_label_share(output.neighbours, shown, output.queue_labels))
        values = torch.cat([self.window.take(), torch.stack([e.float() for e in extra])])
        values = self.world.mean(values).tolist()
        names = ["loss", "loss_instance", "loss_neighbour", "top1", "embedding_std", "feature_rank", "queue_age"]
        metrics = dict(zip([*names, "neighbour_label_share"], values))
        elapsed = time.perf_counter() - self.window_start
        metrics["learning_rate"] = self.schedule.rate(self.state.step - 1)
        metrics["epoch"] = self.state.step / self.schedule.steps_per_epoch
        metrics["images_per_second"] = self.window_images / elapsed
        metrics["data_wait_percent"] = 100 * self.window_wait / elapsed
        self._warn_of_collapse(metrics["embedding_std"])
        share = metrics.get("neighbour_label_share")
        if share is not None and share != share:  # NaN: nothing written yet
            del metrics["neighbour_label_share"]
        self.run.metrics(self.state.step, {k: float(f"{v:.6g}") for k, v in metrics.items()})
        self.window_start, self.window_wait, self.window_images = time.perf_counter(), 0.0, 0
        speed = f"{metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait_percent']:.0f}%"
        short = f"loss {metrics['loss']:.2f}, lr {metrics['learning_rate']:.2g}, {speed}"
        line = f"top-1 {100 * metrics['top1']:.0f}%  {short}"
        where = f"epoch {metrics['epoch']:.2f}  step {self.state.step}/{self.schedule.end_step}"
        if self.run.console.is_terminal:
            self.run.note(f"{where}  {line}")
        else:
            self.run.log(f"{where}  {line}")
        return short

    def _warn_of_collapse(self, spread: float) -> None:
        # Embeddings of a new network are alike, and first move together: only a lasting state is worth a warning.
        self.collapsed_windows = self.collapsed_windows + 1 if spread < 0.02 else 0
        if self.collapsed_windows == 3:
            self.run.warn(
                f"embeddings are collapsing (standard deviation {spread:.3f} of 1 at step {self.state.step}); "
                "if this lasts, lower optim.lr, warm it up (optim.warmup_epochs), or lower neighbours.weight"
            )

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        start = time.perf_counter()
        metrics = self.evaluate()
        self.run.metrics(self.state.step, metrics)
        self.run.log(f"step {self.state.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        pause = time.perf_counter() - start
        self.window_start += pause  # images/s is about training

    def _abort(self, step: int, loss: Tensor) -> None:
        """Save what reproduces a loss that is not finite, and end the run."""
        batch, rendered = self.recent[0]
        path = self.run.path / f"nonfinite-step-{step:08d}-rank{self.world.rank}.pt"
        content = {
            "step": step,
            "loss": loss.item(),
            "indices": batch.indices.cpu(),
            "views": [view.cpu() for view in rendered],
            "learning_rate": self.schedule.rate(step),
            # On a GPU the loss is looked at one step late: then these weights have already moved.
            "model_is_from_before_the_step": self.world.device.type == "cpu",
            "model": self.state.model.state_dict(),
        }
        with atomic_writer(path) as file:
            torch.save(content, file)
        raise RunFailed(
            f"the loss is {loss.item()} at step {step}; the batch and the weights are saved in '{path}', and "
            f"checkpoints of earlier steps are intact; try a lower optim.lr or precision=fp32"
        )


_NOTHING, _SAVE, _STOP = 0, 1, 2


def _due(step: int, every: int | None, end: int) -> bool:
    return bool(every) and (step % every == 0 or step == end)
