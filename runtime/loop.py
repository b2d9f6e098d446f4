"""The training loop: when a step, a line of metrics, a checkpoint, an evaluation and the end are due.

What a step computes is the business of a :class:`Training`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from .allocator import keep_freed_memory
from .checkpoint import save_checkpoint
from .errors import RunFailed, UserError
from .preemption import StopRequest
from .progress import ProgressBar
from .run import RunDirectory
from .training_state import TrainingState

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class LoopPlan(ABC):
    """When things happen, in optimiser steps.

    Attributes:
        steps_per_epoch: optimiser steps of one pass over the images.
        end_step: where this run stops.
        log_every: steps between two lines of metrics.
        save_every_steps: steps between two checkpoints, or None.
        save_every_minutes: minutes between two checkpoints, or None.
        keep_last: newest checkpoints kept.
        keep_every_steps: checkpoints at multiples of this are written and kept for ever, or None.
        evaluate_every_steps: steps between two evaluations, or None.
    """

    steps_per_epoch: int
    end_step: int
    log_every: int = 50
    save_every_steps: int | None = None
    save_every_minutes: float | None = 15.0
    keep_last: int = 2
    keep_every_steps: int | None = None
    evaluate_every_steps: int | None = None

    @abstractmethod
    def rate(self, step: int) -> float:
        """Learning rate of a step."""

    def save_is_due(self, done: int) -> bool:
        """Whether a checkpoint belongs after ``done`` steps, the clock aside."""
        return any(every and done % every == 0 for every in (self.save_every_steps, self.keep_every_steps))


class Training(ABC, Generic[Batch]):
    """What the loop runs.

    Attributes:
        state: what is trained; the loop counts its ``step`` up.
    """

    state: TrainingState

    @abstractmethod
    def one_step(self, batch: Batch) -> int:
        """Do step ``state.step``; returns the number of images of this process."""

    @abstractmethod
    def window_metrics(self) -> dict[str, float]:
        """Numbers since the last call, at least ``loss``; a collective call."""

    @abstractmethod
    def headline(self, metrics: dict[str, float]) -> str:
        """What a line of the log says about these numbers before the loss."""

    @abstractmethod
    def settle(self) -> None:
        """Make sure that every step so far had a finite loss; called before the state is saved."""


def run_loop(
    training: Training[Batch],
    batches: Iterable[Batch],
    plan: LoopPlan,
    run: RunDirectory,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stop: StopRequest | None = None,
) -> bool:
    """Train from ``state.step`` to ``plan.end_step``, or until asked to stop; saves at the end either way.

    Args:
        training: the step and its state.
        batches: one a step, starting at ``state.step``.
        plan: when to save, log and evaluate.
        run: where metrics and checkpoints go.
        evaluate: called every ``evaluate_every_steps`` on all processes; returns metrics.
        stop: polled once a step.

    Returns:
        True if ``end_step`` was reached, False if the run was asked to stop before.

    Raises:
        RunFailed: a checkpoint could not be written.
    """
    if training.state.world.device.type == "cpu":
        keep_freed_memory()
    return _Loop(training, plan, run, evaluate, stop or StopRequest()).run_steps(batches)


class _Loop(Generic[Batch]):
    """The moving parts of :func:`run_loop`."""

    def __init__(
        self,
        training: Training[Batch],
        plan: LoopPlan,
        run: RunDirectory,
        evaluate: Callable[[], dict[str, float]] | None,
        stop: StopRequest,
    ):
        self.training, self.state, self.plan, self.run = training, training.state, plan, run
        self.evaluate, self.stop = evaluate, stop
        self.world = self.state.world
        self.window_start = time.perf_counter()
        self.window_wait = 0.0
        self.window_images = 0
        self.last_save = time.monotonic()

    def run_steps(self, batches: Iterable[Batch]) -> bool:
        end = self.plan.end_step
        saved_at = None
        with ProgressBar(self.run.console, "", end, self.state.step) as bar:
            for batch in self._timed(batches):
                self.window_images += self.training.one_step(batch) * self.world.size
                self.state.step += 1
                bar.update(self.state.step)
                if self.state.step % self.plan.log_every == 0 or self.state.step == end:
                    bar.update(self.state.step, self._log())
                if self.evaluate and _due(self.state.step, self.plan.evaluate_every_steps, end):
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

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.window_wait += time.perf_counter() - start
            yield batch

    def _agree_on_action(self) -> int:
        wanted = _NOTHING
        if self.plan.save_is_due(self.state.step):
            wanted = _SAVE
        minutes = self.plan.save_every_minutes
        if minutes and self.world.is_main and time.monotonic() - self.last_save > 60 * minutes:
            wanted = _SAVE
        if self.stop.signal is not None:
            wanted = _STOP
        return self.world.maximum(wanted)

    def _save(self) -> None:
        self.training.settle()
        content = self.state.snapshot(self.plan.steps_per_epoch)
        failure = None
        if self.world.is_main:
            try:
                save_checkpoint(
                    self.run.checkpoints,
                    self.state.step,
                    content,
                    keep_last=self.plan.keep_last,
                    keep_every_steps=self.plan.keep_every_steps,
                )
            except UserError as error:
                failure = str(error)
        # Every process must know, or the others would wait for rank 0 for ever.
        failures = [f for f in self.world.gather_objects(failure) if f]
        if failures:
            raise RunFailed(failures[0])
        self.last_save = time.monotonic()

    def _log(self) -> str:
        metrics = self.training.window_metrics()
        elapsed = time.perf_counter() - self.window_start
        metrics["learning_rate"] = self.plan.rate(self.state.step - 1)
        metrics["epoch"] = self.state.step / self.plan.steps_per_epoch
        metrics["images_per_second"] = self.window_images / elapsed
        metrics["data_wait_percent"] = 100 * self.window_wait / elapsed
        self.run.metrics(self.state.step, {k: float(f"{v:.8g}") for k, v in metrics.items()})
        self.window_start, self.window_wait, self.window_images = time.perf_counter(), 0.0, 0
        speed = f"{metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait_percent']:.0f}%"
        short = f"loss {metrics['loss']:.2f}, lr {metrics['learning_rate']:.2g}, {speed}"
        where = f"epoch {metrics['epoch']:.2f}  step {self.state.step}/{self.plan.end_step}"
        line = "  ".join(part for part in (where, self.training.headline(metrics), short) if part)
        if self.run.console.is_terminal:
            self.run.note(line)
        else:
            self.run.log(line)
        return short

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        start = time.perf_counter()
        metrics = self.evaluate()
        self.run.metrics(self.state.step, metrics)
        self.run.log(f"step {self.state.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        pause = time.perf_counter() - start
        self.window_start += pause  # images/s is about training


_NOTHING, _SAVE, _STOP = 0, 1, 2


def _due(step: int, every: int | None, end: int) -> bool:
    return bool(every) and (step % every == 0 or step == end)
