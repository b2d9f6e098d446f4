"""Checks between the keys of ``polyscene multitask``."""

from __future__ import annotations

from typing import Any

from polyscene.runtime.errors import UserError

from .limits import check_above_zero, check_at_least
from .multitask_config import (
    INTERACTING,
    MULTI_SCALE_HEADS,
    MultitaskConfig,
    auxiliary_tasks,
    chosen_tasks,
    is_multi_scale,
    only_evaluates,
)


def check_values(config: MultitaskConfig) -> None:
    """Refuse values that are of the right type but make no sense.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    chosen_tasks(config)
    _check_numbers(config)
    _check_length(config)
    _check_task_weights(config.task_weights)
    if config.seeds is not None and (not config.seeds or len(set(config.seeds)) < len(config.seeds)):
        raise UserError(f"seeds={list(config.seeds)} must be one or more different numbers; null for the one of seed")
    if not (config.checkpoint.every_steps or config.checkpoint.every_minutes):
        raise UserError("checkpoint.every_steps and checkpoint.every_minutes are both null; set one of them")
    model = config.model
    if config.weights is None and model.base is None:
        raise UserError("weights is required: a pretraining run, a weights file, or random; or set model.base=RUN")
    if model.base is not None and model.kind == "multi_task" and not only_evaluates(config):
        raise UserError("model.kind=multi_task: a shared encoder cannot take new tasks; model.base needs another kind")
    if model.rcm.rank is not None and model.kind == "rcm" and not model.rcm.response_init:
        raise UserError(f"model.rcm.rank={model.rcm.rank:g} needs model.rcm.response_init=true")
    if config.evaluate.all_tasks and model.base is None:
        raise UserError("evaluate.all_tasks=true needs model.base, the model whose tasks are evaluated too")
    _check_kind(config)
    _check_balancing(config)
    coarsest = 32 if is_multi_scale(config) else model.output_stride
    smallest = 2 * coarsest
    for key, size in (("augmentation.size", config.augmentation.size), ("evaluate.stretch", config.evaluate.stretch)):
        if size is not None and min(size) < smallest:
            raise UserError(
                f"{key}={list(size)} is too small; with cells of {coarsest} pixels use at least {smallest} pixels"
            )


def _check_numbers(c: MultitaskConfig) -> None:
    at_least: list[tuple[str, Any, float]] = [
        ("seed", c.seed, 0),
        *(("seeds", seed, 0) for seed in c.seeds or ()),
        ("batch_size", c.batch_size, 2),
        ("iterations", c.iterations, 0),
        ("max_steps", c.max_steps, 1),
        ("data.max_val", c.data.max_val, 1),
        ("data.workers", c.data.workers, 0),
        ("model.head_width", c.model.head_width, 1),
        ("model.pyramid_width", c.model.pyramid_width, 1),
        ("model.mti_net.fpm_narrowing", c.model.mti_net.fpm_narrowing, 1),
        ("balancing.gradnorm_alpha", c.balancing.gradnorm_alpha, 0),
        ("balancing.measure_iterations", c.balancing.measure_iterations, 1),
        ("model.rcm.init_count", c.model.rcm.init_count, 1),
        ("optim.momentum", c.optim.momentum, 0),
        ("optim.weight_decay", c.optim.weight_decay, 0),
        ("optim.power", c.optim.power, 0),
        ("evaluate.every_epochs", c.evaluate.every_epochs, 1),
        ("evaluate.pictures", c.evaluate.pictures, 0),
        ("checkpoint.every_steps", c.checkpoint.every_steps, 1),
        ("checkpoint.keep_last", c.checkpoint.keep_last, 1),
        ("checkpoint.keep_every_epochs", c.checkpoint.keep_every_epochs, 1),
        ("log.every", c.log.every, 1),
    ]
    check_at_least(at_least)
    above_zero = [
        ("epochs", c.epochs),
        ("optim.lr", c.optim.lr),
        ("balancing.uncertainty_rate", c.balancing.uncertainty_rate),
        ("balancing.gradnorm_rate", c.balancing.gradnorm_rate),
        ("balancing.dwa_temperature", c.balancing.dwa_temperature),
        ("balancing.dtp_smoothing", c.balancing.dtp_smoothing),
        ("checkpoint.every_minutes", c.checkpoint.every_minutes),
        ("model.rcm.rank", c.model.rcm.rank),
    ]
    check_above_zero(above_zero)


def _check_length(config: MultitaskConfig) -> None:
    if not only_evaluates(config) and (config.iterations is None) == (config.epochs is None):
        given = "neither iterations nor epochs is" if config.epochs is None else "both iterations and epochs are"
        raise UserError(f"{given} set; give the length of the schedule as one of them, and the other as null")
    if only_evaluates(config) and config.model.base is None:
        raise UserError("iterations=0 trains nothing; to evaluate a trained model set model.base=RUN")
    if only_evaluates(config) and config.seeds is not None:
        raise UserError("iterations=0 trains nothing, so that seeds have no effect; leave seeds out")


def _check_kind(config: MultitaskConfig) -> None:
    model = config.model
    if config.auxiliary_tasks and model.kind not in INTERACTING and model.base is None:
        raise UserError(
            f"auxiliary_tasks={list(config.auxiliary_tasks)} need a front end; model.kind={model.kind} has none, use "
            "mti_net or pad_net"
        )
    if config.auxiliary_tasks and only_evaluates(config):
        raise UserError("iterations=0 trains nothing; leave auxiliary_tasks out, the base has its own")
    twice = next((task for task in auxiliary_tasks(config) if task in chosen_tasks(config)), None)
    if twice is not None:
        raise UserError(f"task '{twice}' is in tasks and in auxiliary_tasks; remove it from one of them")
    if model.base is not None:
        return  # which says what the model is
    if model.head is not None and model.kind in INTERACTING:
        raise UserError(f"model.head={model.head}: model.kind={model.kind} has heads of its own; leave model.head out")
    if model.head in MULTI_SCALE_HEADS and model.kind not in ("single", "multi_task"):
        raise UserError(
            f"model.head={model.head} stands on four scales, which model.kind={model.kind} does not have; use "
            "deeplab_v3_plus or aspp, or kind single or multi_task"
        )
    if config.evaluate.front_ends and model.kind not in INTERACTING:
        raise UserError(f"evaluate.front_ends=true: model.kind={model.kind} has no front ends; use mti_net or pad_net")


def _check_balancing(config: MultitaskConfig) -> None:
    strategy, kind = config.balancing.strategy, config.model.kind
    if strategy == "dtp" and config.balancing.dtp_smoothing > 1:
        raise UserError(f"balancing.dtp_smoothing={config.balancing.dtp_smoothing:g} must be at most 1")
    if strategy in ("gradnorm", "mgda") and config.model.base is None and kind not in ("multi_task", *INTERACTING):
        raise UserError(
            f"balancing.strategy={strategy} needs layers that the tasks train together; model.kind={kind} has none, "
            "use multi_task, pad_net or mti_net"
        )


def _check_task_weights(weights: dict | None) -> None:
    for task, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"task_weights.{task}={weight} must be a number above 0")
