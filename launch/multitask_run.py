"""One run of ``polyscene multitask``: train, save, evaluate, draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from polyscene.downstream.multitask.balancing.base import Balancer
from polyscene.downstream.multitask.engine import train
from polyscene.downstream.multitask.loading import train_batches
from polyscene.downstream.multitask.models.model_file import SavedModel, save_model
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.rcm.moments import Moments
from polyscene.downstream.multitask.resources import measure_resources
from polyscene.downstream.multitask.schedule import Schedule
from polyscene.downstream.multitask.state import MultitaskState
from polyscene.downstream.multitask.step import DenseStep
from polyscene.runtime.batch_norm import averaged_statistics
from polyscene.runtime.checkpoint import checkpoint_step, list_checkpoints
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory, open_run, run_hash
from polyscene.runtime.training_state import resume
from polyscene.runtime.weights import weights_hash

from .multitask_config import HARMLESS, MultitaskConfig
from .multitask_judge import Judge
from .multitask_model import Ingredients, build
from .multitask_moments import response_moments
from .multitask_plan import augmentation, describe, describe_resources, open_balancer, plan_schedule
from .multitask_results import Comparison

MODEL_FILE = "model.safetensors"


def run_one(
    config: MultitaskConfig, found: Ingredients, comparison: Comparison, world: World, moments_folder: Path
) -> int:
    """Train and evaluate, or continue, one run with one seed; returns the exit code.

    Args:
        config: of the run; checked.
        found: what it is made of.
        comparison: single-task results and published rows.
        world: its processes.
        moments_folder: where the moments of Response Initialization lie, or are put.

    Raises:
        UserError: what only shows while running.
    """
    schedule = plan_schedule(config, found.train)
    run = open_directory(config, world)
    if is_finished(run.path, schedule):
        run.log(f"'{run.path}' is already finished; overwrite=true starts afresh")
        return 0
    if run.main:
        (run.path / "results.json").unlink(missing_ok=True)  # of an earlier, shorter training
    for line in describe(config, found, schedule, world):
        run.log(line)
    saved = build(found, config, _moments(config, found, moments_folder, world, run))
    saved.model.to(world.device, memory_format=torch.channels_last)
    resources = measure_resources(saved.model, config.augmentation.size)
    run.log(describe_resources(resources))
    judge = Judge(config, found, world, run)
    if schedule is None:
        judge.conclude(saved, comparison, resources)
        return 0
    balancer = open_balancer(config, found, schedule).to(world.device)
    state = _create_state(config, found, saved, balancer, world)
    kept = frozen_statistics(saved, found.records)
    step = DenseStep(
        state.model,
        state.optimizer,
        found.train.tasks,
        balancer,
        world,
        tasks=tuple(found.records),
        shared_layers=config.balancing.shared_layers,
        precision=config.precision,
        sync_batch_norm=config.optim.sync_batch_norm,
    )
    resume(state, run.checkpoints, run)
    with StopRequest() as stop:
        completed = _train(config, found, state, step, schedule, run, kept, judge, stop)
    run.close()
    if not completed:
        run.log(f"stopped at step {state.step}; the same command continues from there")
        return stop.exit_code or 1
    saved = replace(saved, metadata=_metadata(config, found, state.step))
    with settled(saved.model, world, kept):
        if run.main:
            path = run.path / MODEL_FILE
            save_model(path, saved)
            run.log(f"trained for {state.step} steps; model: '{path}'")
        judge.conclude(saved, comparison, resources, state.step)
    return 0


def open_directory(config: MultitaskConfig, world: World, may_differ: Sequence[str] = ()) -> RunDirectory:
    """The run directory of a config, opened by the main process.

    Raises:
        UserError: another config's run is there, or the folder is not writable.
    """
    if world.is_main:
        open_run(config.out, to_dict(config), overwrite=config.overwrite, may_differ=(*HARMLESS, *may_differ))
    world.barrier()
    console = Console(stderr=True, highlight=False, quiet=not world.is_main)
    return RunDirectory(Path(config.out), main=world.is_main, console=console, tensorboard=config.log.tensorboard)


def is_finished(path: Path, schedule: Schedule | None) -> bool:
    """Whether a run directory holds results of a training up to the schedule's end."""
    if not (path / "results.json").exists():
        return False
    if schedule is None:
        return True
    saved = list_checkpoints(path / "checkpoints")
    return bool(saved) and checkpoint_step(saved[-1]) >= schedule.end_step and (path / MODEL_FILE).exists()


def _moments(
    config: MultitaskConfig, found: Ingredients, folder: Path, world: World, run: RunDirectory
) -> dict[str, Moments] | None:
    if found.init is None:
        return None
    rcm, workers = config.model.rcm, config.data.workers
    return response_moments(
        found.init,
        found.weights,
        folder,
        world,
        run,
        reparameterize=rcm.reparameterize,
        rank=rcm.rank,
        workers=workers,
    )


def _create_state(
    config: MultitaskConfig, found: Ingredients, saved: SavedModel, balancer: Balancer, world: World
) -> MultitaskState:
    optimizer = make_optimizer(
        saved.model,
        config.optim.kind,
        learning_rate=config.optim.lr,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    identity = {
        "arch": saved.arch,
        "dataset": f"{config.data.kind}:{len(found.train)}",
        "config_hash": run_hash(to_dict(config), HARMLESS),
    }
    return MultitaskState(saved.model, optimizer, world, identity, balancer=balancer)


def _train(
    config: MultitaskConfig,
    found: Ingredients,
    state: MultitaskState,
    step: DenseStep,
    schedule: Schedule,
    run: RunDirectory,
    kept: Mapping[str, Tensor],
    judge: Judge,
    stop: StopRequest,
) -> bool:
    world = state.world
    batches = train_batches(
        found.train,
        augmentation(config),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=state.step,
        end_step=schedule.end_step,
        workers=config.data.workers,
        world=world,
    )

    def evaluate() -> dict[str, float]:
        with settled(state.model, world, kept):
            return judge(state.model, state.step)

    try:
        return train(step, state, batches, schedule, run, stop=stop, evaluate=evaluate)
    except UserError as error:
        if world.is_main:
            raise
        # What happens to one process only must be said by that process.
        raise RunFailed(f"rank {world.rank}: {error}") from error


def frozen_statistics(saved: SavedModel, trained: Sequence[str]) -> dict[str, Tensor]:
    """BatchNorm statistics that training must not change: copies of those that belong to no trained task."""
    if not saved.options.independent_tasks:
        return {}
    return {
        name: buffer.clone()
        for name, buffer in _statistics(saved.model)
        if not any(f"tasks.{task}." in name for task in trained)
    }


@contextmanager
def settled(model: nn.Module, world: World, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """The model as it is saved and judged: statistics of the trained tasks averaged over the processes.

    The others are put back bit for bit: their mean over, say, three equal values may differ in the last bit.
    """
    with averaged_statistics(model, world):
        for name, buffer in _statistics(model):
            if name in kept:
                buffer.copy_(kept[name])
        yield


def _statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var")))


def _metadata(config: MultitaskConfig, found: Ingredients, steps: int) -> dict[str, str]:
    """Facts about the training, for the model file."""
    old = {} if found.base is None else {**found.base.metadata, "base": str(config.model.base)}
    new = {
        "steps": str(steps),
        "seed": str(config.seed),
        "dataset": f"{config.data.kind}:{len(found.train)}",
        "config_hash": run_hash(to_dict(config), HARMLESS),
    }
    if found.weights is not None:
        new |= {"weights": str(config.weights), "weights_hash": weights_hash(found.weights)}
    return {**old, **new}
