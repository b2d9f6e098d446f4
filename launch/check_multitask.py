"""``polyscene check`` of a multi-task config: its data set, plan and cost, before GPU hours are spent."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from polyscene.downstream.multitask.balancing.fixed import Fixed
from polyscene.downstream.multitask.data.check import Finding, check_images, check_splits
from polyscene.downstream.multitask.data.opening import PUBLISHED_COUNTS
from polyscene.downstream.multitask.data.transforms import augment, collate
from polyscene.downstream.multitask.models.base import DenseModel
from polyscene.downstream.multitask.models.families import make_empty_model
from polyscene.downstream.multitask.models.incremental import add_tasks
from polyscene.downstream.multitask.optimizers import make_optimizer
from polyscene.downstream.multitask.resources import Resources, measure_resources
from polyscene.downstream.multitask.schedule import Schedule
from polyscene.downstream.multitask.step import DenseStep
from polyscene.runtime.distributed import World, choose_device
from polyscene.runtime.errors import UserError

from .multitask_config import MultitaskConfig
from .multitask_model import Ingredients, as_base, open_ingredients, open_split
from .multitask_plan import augmentation, check_processes, plan_schedule
from .multitask_results import open_comparison

Row = tuple[str, str]
TIMED_IMAGES = 2  # BatchNorm needs two


def check_multitask(config: MultitaskConfig, *, sample: int = 200) -> int:
    """Print what a config resolves to, what is wrong with its data, and what it costs; returns the exit code.

    Args:
        config: a validated config.
        sample: images of every list whose labels are read; files are looked for everywhere.

    Raises:
        UserError: the run would be refused.
    """
    console = Console(stderr=True, highlight=False)
    config = as_base(config)
    device = choose_device(config.device)
    check_processes(config, 1)
    found = open_ingredients(config)
    schedule = plan_schedule(config, found.train)
    open_comparison(config, found)
    findings = data_findings(config, found, sample, console)
    rows = data_rows(found)
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        model = planned_model(config, found)
        rows += plan_rows(config, schedule) + cost_rows(measure_resources(model, config.augmentation.size))
        if schedule is not None:
            rows.append(("speed", speed_row(config, found, model, schedule, device)))
    table = Table(show_header=False, title=f"{config.out}", title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    for finding in findings:
        colour = "red" if finding.level == "error" else "yellow"
        many = f" ({finding.count} images)" if finding.count > 1 else ""
        line = f"{finding.level}: {finding.subject}: {finding.message}{many}"
        console.print(line, style=colour, markup=False, soft_wrap=True)
    if errors:
        raise UserError(
            f"{len(errors)} kinds of faults in '{config.data.root}', see above; repair them, for example by unpacking "
            "the archive again"
        )
    console.print("no problem found" if not findings else "no error found", style="green")
    return 0


def data_findings(config: MultitaskConfig, found: Ingredients, sample: int, console: Console) -> list[Finding]:
    """What is wrong with the lists that the run reads."""
    findings: list[Finding] = []
    splits = [split for split in (found.train, found.val) if split is not None]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for split in splits:
            task = progress.add_task(f"reading {split.split}", total=min(sample, len(split)))
            findings += check_images(split, sample, lambda done, task=task: progress.update(task, advance=done))
    if found.train is not None and not config.data.person_images_only:
        whole = open_split(config, config.data.val, list(config.tasks or ()) or [config.task])
        findings += check_splits(found.train, whole, PUBLISHED_COUNTS[config.data.kind])
    return findings


def data_rows(found: Ingredients) -> list[Row]:
    """Images and tasks."""
    rows = [("data", found.val.title)]
    if found.train is not None:
        rows.append(("images to train on", f"{len(found.train):,} ('{found.train.split}')"))
    rows.append(("images to evaluate on", f"{len(found.val):,} ('{found.val.split}')"))
    for name, spec in found.val.tasks.items():
        choices = ", ".join(f"{key} {value}" for key, value in spec.protocol.items())
        judged = f"{spec.channels} channels, judged by {spec.metric}" + (f" ({choices})" if choices else "")
        trained = "" if name in found.records or not found.records else ", not trained"
        rows.append((f"task {name}", judged + trained))
    for name, record in found.auxiliary.items():
        rows.append((f"task {name}", f"{record.channels} channels, auxiliary: learnt from, not judged"))
    return rows


def plan_rows(config: MultitaskConfig, schedule: Schedule | None) -> list[Row]:
    """Steps and what Response Initialization sees."""
    if schedule is None:
        return [("steps", "none, evaluation only")]
    epochs = schedule.total_steps / schedule.steps_per_epoch
    height, width = config.augmentation.size
    return [
        ("steps", f"{schedule.total_steps:,} ({schedule.steps_per_epoch:,} an epoch, {epochs:.3g} epochs)"),
        ("training input", f"{config.batch_size} x {height} x {width}, augmentation {config.augmentation.recipe}"),
    ]


def planned_model(config: MultitaskConfig, found: Ingredients) -> DenseModel:
    """A model of the run's shape; its values mean nothing."""
    if found.base is not None:
        return (add_tasks(found.base, found.records, config.seed) if found.records else found.base).model
    return make_empty_model(
        found.options,
        found.arch,
        found.channels,
        auxiliary=found.auxiliary_channels,
        image_level=found.image_level,
    )


def cost_rows(resources: Resources) -> list[Row]:
    """Parameters and operations."""
    height, width = resources.size
    own = [(f"parameters of {task} alone", f"{number:,}") for task, number in resources.tasks.items()]
    return [
        ("parameters", f"{resources.parameters:,}, of which {resources.trained:,} are trained"),
        ("parameters shared by all tasks", f"{resources.shared:,}"),
        *own,
        (f"operations, {height} x {width}", f"{resources.flops / 1e9:,.1f} GFLOPs for all tasks of an image"),
    ]


def speed_row(
    config: MultitaskConfig, found: Ingredients, model: DenseModel, schedule: Schedule, device: torch.device
) -> str:
    """Images per second of one process on this machine, from a training step of two images."""
    samples = [found.train.read(index % len(found.train)) for index in range(TIMED_IMAGES)]
    recipe = augmentation(config)
    batch = collate(
        [
            augment(sample, found.train.tasks, recipe, seed=config.seed, epoch=0, index=index)
            for index, sample in enumerate(samples)
        ]
    ).to(device)
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, "sgd", learning_rate=0.0)
    world = World(rank=0, size=1, device=device)
    step = DenseStep(
        model,
        optimizer,
        found.train.tasks,
        Fixed([*found.train.tasks]).to(device),
        world,
        tasks=tuple(found.records),
        precision=config.precision,
    )
    step.on_nonfinite = lambda number, loss: None  # the model's values mean nothing
    seconds = []
    for number in range(2):
        start = time.perf_counter()
        step.step(batch, step=number, learning_rate=0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    rate = TIMED_IMAGES / min(seconds)
    hours = schedule.end_step * config.batch_size / rate / 3600
    return (
        f"about {rate:.3g} images/s, {hours:.2g} hours of training on one {device.type} "
        f"(from {TIMED_IMAGES} images; reading excluded)"
    )
