"""The evaluations of a run: during its training, and at its end with pictures and results.json."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from torch import nn

from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.evaluation import class_scores, measure
from polyscene.downstream.multitask.models.base import DenseModel
from polyscene.downstream.multitask.models.model_file import SavedModel
from polyscene.downstream.multitask.mti_net.interaction import InteractionModel
from polyscene.downstream.multitask.mti_net.views import FrontEndView
from polyscene.downstream.multitask.resources import Resources
from polyscene.runtime.distributed import World
from polyscene.runtime.results import Picture
from polyscene.runtime.run import RunDirectory

from .multitask_config import MultitaskConfig
from .multitask_model import Ingredients
from .multitask_results import Comparison, spectrum_pictures, write_run_results


class Judge:
    """Evaluates a model on the images of a config.

    Args:
        config: of the run.
        found: with the images and tasks to be evaluated.
        world: the processes, which share the images.
        run: where results go.
    """

    def __init__(self, config: MultitaskConfig, found: Ingredients, world: World, run: RunDirectory):
        self.config, self.found, self.world, self.run = config, found, world, run
        self.step: int | None = None  # that the scores are of
        self.scores: dict[str, dict[str, float]] = {}
        self.classes: dict[str, dict[str, float]] = {}
        self.front_ends: dict[int, dict[str, dict[str, float]]] = {}  # by stride

    def __call__(self, model: DenseModel, step: int, console: Console | None = None) -> dict[str, float]:
        """Evaluate, and return the main metric of every task for metrics.jsonl; a collective call.

        Args:
            model: on the device of this process.
            step: optimiser steps it was trained for.
            console: where a progress bar is drawn; None while the training has its own.
        """
        images = self.found.val
        metrics = self._measure(model, images, console)
        self.step = step
        self.scores = {task: metric.compute() for task, metric in metrics.items()}
        self.classes = class_scores(metrics, images.tasks)
        main = {f"{task}_{spec.metric}": self.scores[task][spec.metric] for task, spec in images.tasks.items()}
        return {key: value for key, value in main.items() if math.isfinite(value)}

    def conclude(self, saved: SavedModel, comparison: Comparison, resources: Resources, step: int = 0) -> None:
        """Evaluate unless that was just done, draw, and write results.json, which makes the run a finished one."""
        if self.step != step:
            self(saved.model, step, self.run.console)
        if self.found.front_val is not None:
            self._judge_front_ends(saved.model)
        if self.run.main:
            pictures = [*self._draw(saved), *spectrum_pictures(self.run.path)]
            extra = {"resources": resources.to_json(), "model_metadata": saved.metadata}
            write_run_results(
                self.config,
                self.found,
                comparison,
                self.scores,
                self.classes,
                self.front_ends,
                pictures,
                extra,
                self.run,
            )
        self.world.barrier()

    def _judge_front_ends(self, model: InteractionModel) -> None:
        """The first predictions at every scale, of main and auxiliary tasks (thesis, table 5.3); a collective call."""
        images = self.found.front_val
        for stride in model.deep_strides:
            self.run.log(f"first predictions at 1/{stride}")
            metrics = self._measure(FrontEndView(model, stride), images, self.run.console)
            self.front_ends[stride] = {task: metric.compute() for task, metric in metrics.items()}

    def _measure(self, model: nn.Module, images: DenseImages, console: Console | None) -> dict[str, Any]:
        config = self.config
        return measure(
            model,
            images,
            tasks=tuple(images.tasks),
            device=self.world.device,
            precision=config.precision,
            workers=config.data.workers,
            world=self.world,
            stretch=config.evaluate.stretch,
            multiple=self.found.options.multiple,
            batch_size=max(1, config.batch_size // self.world.size),
            console=console,
        )

    def _draw(self, saved: SavedModel) -> list[Picture]:
        if not self.config.evaluate.pictures:
            return []
        from .multitask_pictures import draw_predictions

        return draw_predictions(
            saved.model,
            self.found.val,
            self.run.pictures,
            count=self.config.evaluate.pictures,
            device=self.world.device,
            precision=self.config.precision,
            stretch=self.config.evaluate.stretch,
            multiple=saved.options.multiple,
        )
