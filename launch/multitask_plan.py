"""What a multi-task config means in steps, crops and words, before anything is computed."""

from __future__ import annotations

import torch

from polyscene.downstream.multitask.balancing.base import Balancer
from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.data.transforms import (
    Augmentation,
    mti_net_nyud_augmentation,
    mti_net_pascal_augmentation,
    rcm_augmentation,
)
from polyscene.downstream.multitask.resources import Resources
from polyscene.downstream.multitask.schedule import Schedule
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.sampling import steps_per_epoch

from .multitask_config import MultitaskConfig, only_evaluates
from .multitask_model import Ingredients


def plan_schedule(config: MultitaskConfig, train_images: DenseImages | None) -> Schedule | None:
    """The config's iterations or epochs as steps; None where nothing is trained.

    Raises:
        UserError: fewer images than a batch.
    """
    if train_images is None or only_evaluates(config):
        return None
    per_epoch = steps_per_epoch(len(train_images), config.batch_size)
    total = config.iterations if config.iterations is not None else max(1, round(config.epochs * per_epoch))
    keep, every = config.checkpoint.keep_every_epochs, config.evaluate.every_epochs
    return Schedule(
        steps_per_epoch=per_epoch,
        total_steps=total,
        end_step=min(total, config.max_steps or total),
        learning_rate=config.optim.lr,
        kind=config.optim.schedule,
        power=config.optim.power,
        log_every=config.log.every,
        save_every_steps=config.checkpoint.every_steps,
        save_every_minutes=config.checkpoint.every_minutes,
        keep_last=config.checkpoint.keep_last,
        keep_every_steps=keep * per_epoch if keep else None,
        evaluate_every_steps=every * per_epoch if every else None,
    )


def check_processes(config: MultitaskConfig, processes: int) -> None:
    """Refuse batches that the processes cannot share.

    Raises:
        UserError: naming batch_size.
    """
    if config.batch_size % processes:
        raise UserError(f"batch_size={config.batch_size} is not a multiple of {processes} processes; change one")
    if config.batch_size // processes < 2:
        raise UserError(
            f"batch_size={config.batch_size} over {processes} processes leaves one image to each, too few for "
            f"BatchNorm; use at least {2 * processes}"
        )


def open_balancer(config: MultitaskConfig, found: Ingredients, schedule: Schedule) -> Balancer:
    """The strategy that the config names, for all tasks that are trained.

    Raises:
        UserError: a value that cannot be.
    """
    chosen, tasks = config.balancing, found.train.tasks
    return make_balancer(
        chosen.strategy,
        tuple(tasks),
        {task: weight for task, weight in (config.task_weights or {}).items() if task in tasks},
        uncertainty_rate=chosen.uncertainty_rate,
        # Those with a softmax over classes.
        classification=[name for name, spec in tasks.items() if spec.classes],
        gradnorm_alpha=chosen.gradnorm_alpha,
        gradnorm_rate=chosen.gradnorm_rate,
        dwa_period=schedule.steps_per_epoch,
        dwa_temperature=chosen.dwa_temperature,
        dtp_focus=chosen.dtp_focus,
        dtp_smoothing=chosen.dtp_smoothing,
        mgda_normalize=chosen.mgda_normalize,
        mgda_total=len(tasks),  # as with the other strategies: the learning rate then means the same
        measure_iterations=chosen.measure_iterations,
        measure_repeat=chosen.measure_repeat,
    )


def augmentation(config: MultitaskConfig) -> Augmentation:
    """The recipe that the config names."""
    size = config.augmentation.size
    recipes = {
        "rcm": rcm_augmentation,
        "mti_net_nyud": mti_net_nyud_augmentation,
        "mti_net_pascal": mti_net_pascal_augmentation,
    }
    recipe = recipes.get(config.augmentation.recipe)
    return Augmentation(size, "stretch", flip=0.0) if recipe is None else recipe(size)


def describe(config: MultitaskConfig, found: Ingredients, schedule: Schedule | None, world: World) -> list[str]:
    """What is about to happen, in a few lines."""
    options = found.options
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    source = f"base '{config.model.base}'" if found.base is not None else f"weights '{config.weights}'"
    lines = [f"{options.kind}, {found.arch} from {source}, {options.decoder()}"]
    if found.base is not None:
        lines.append(f"tasks of the base, which stay as they are: {', '.join(found.base.tasks)}")
    if schedule is None:
        return [
            *lines,
            f"evaluation of {', '.join(found.val.tasks)} on {len(found.val):,} images of '{found.val.split}'",
        ]
    epochs = schedule.end_step / schedule.steps_per_epoch
    auxiliary = f" (auxiliary: {', '.join(found.auxiliary)})" if found.auxiliary else ""
    if config.balancing.strategy != "fixed":
        lines.append(f"weights of the losses: {config.balancing.strategy}")
    return [
        *lines,
        f"{found.train.title}: {', '.join(found.records)}{auxiliary}; {len(found.train):,} images to train on, "
        f"{len(found.val):,} to evaluate on",
        f"{schedule.end_step} steps of {config.batch_size} images of {config.augmentation.size[0]}x"
        f"{config.augmentation.size[1]} ({epochs:.3g} epochs) on {world.size} x {name}, {config.precision}",
    ]


def describe_resources(resources: Resources) -> str:
    """Parameters and operations in one line."""
    own = ", ".join(f"{task} {number / 1e6:.2f} M" for task, number in resources.tasks.items())
    return (
        f"{resources.parameters / 1e6:.2f} M parameters, {resources.trained / 1e6:.2f} M trained; shared "
        f"{resources.shared / 1e6:.2f} M, {own}; {resources.flops / 1e9:.1f} GFLOPs an image of "
        f"{resources.size[0]}x{resources.size[1]}"
    )
