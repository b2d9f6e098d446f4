"""``polyscene pretrain``: from a config to a trained backbone. The config ends here; below are explicit arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from polyscene.runtime.checkpoint import checkpoint_step, list_checkpoints
from polyscene.runtime.distributed import World, join_world
from polyscene.runtime.errors import RunFailed, UserError
from polyscene.runtime.features import image_features, resize_for
from polyscene.runtime.files import make_folder
from polyscene.runtime.knn import accuracy, knn_predict
from polyscene.runtime.preemption import StopRequest
from polyscene.runtime.run import RunDirectory, open_run, run_hash
from polyscene.runtime.sampling import steps_per_epoch
from polyscene.runtime.training_state import resume
from polyscene.runtime.weights import BackboneWeights, write_weights
from polyscene.ssl.engine import Schedule, train
from polyscene.ssl.loading import ImageSupply, UnreadableLog, image_loader
from polyscene.ssl.moco.encoder import Encoder, create_backbone
from polyscene.ssl.moco.model import MoCo
from polyscene.ssl.moco.normalization import NormPlan, plan_normalization
from polyscene.ssl.moco.queue import KeyQueue
from polyscene.ssl.sources import ImageSource, open_source
from polyscene.ssl.state import TrainingState, averaged_backbone
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

from .pretrain_config import HARMLESS, PretrainConfig, check_values, run_values
from .pretrain_images import image_supply, plan_images


def pretrain(config: PretrainConfig) -> int:
    """Run (or continue) a pretraining; returns the exit code.

    Raises:
        UserError: anything wrong with the config, the data or the run directory.
    """
    check_values(config)
    with join_world(config.device) as world:
        return _pretrain(config, world)


def _pretrain(config: PretrainConfig, world: World) -> int:
    # Everything that can be refused is looked at before the run directory gets its config: a corrected command must
    # not be told that another config is there.
    norm = plan_norm(config, world.size)
    with torch.device("meta"):
        create_backbone(config.model.backbone)
    source = _open_images_once(config, world)
    schedule = plan_schedule(config, len(source))
    over = _finished(Path(config.out), schedule) and not config.overwrite
    images = None if over else plan_images(config, source, world)
    if world.is_main:
        open_run(config.out, run_values(config), overwrite=config.overwrite, may_differ=HARMLESS)
    world.barrier()
    console = Console(stderr=True, highlight=False, quiet=not world.is_main)
    run = RunDirectory(Path(config.out), main=world.is_main, console=console, tensorboard=config.log.tensorboard)
    if images is None:
        run.log(f"'{run.path}' is already finished ({schedule.end_step} steps); overwrite=true starts afresh")
        return 0
    for line in describe_run(config, source, schedule, norm.kind, norm.group, world):
        run.log(line)
    for warning in queue_warnings(config, len(source)):
        run.warn(warning)
    with image_supply(images, source, world, run) as supply:
        state = _create_state(config, source, world)
        runner = _create_runner(config, state, norm, schedule)
        resume(state, run.checkpoints, run)
        if config.log.pictures and world.is_main and not (run.pictures / "views.png").exists():
            draw_views(config, source, supply, view_spec(config), run.pictures / "views.png")
        with StopRequest() as stop:
            completed = _train(config, source, supply, state, runner, schedule, run, stop)
    run.close()
    if not completed:
        run.log(f"stopped at step {state.step}; the same command continues from there")
        return stop.exit_code or 1
    _write_backbone(config, source, state, schedule, run)
    return 0


def _create_runner(config: PretrainConfig, state: TrainingState, norm: NormPlan, schedule: Schedule) -> StepRunner:
    losses = LossSettings(
        temperature=config.model.temperature,
        k=config.neighbours.k if config.neighbours.weight > 0 else 0,
        neighbour_weight=config.neighbours.weight,
        neighbour_start=round(config.neighbours.start_epoch * schedule.steps_per_epoch),
    )
    return StepRunner(
        state.model,
        state.optimizer,
        losses,
        norm,
        state.world,
        seed=config.seed,
        precision=config.precision,
        accumulate=config.optim.accumulate,
        compile=config.compile,
    )


def _train(
    config: PretrainConfig,
    source: ImageSource,
    supply: ImageSupply,
    state: TrainingState,
    runner: StepRunner,
    schedule: Schedule,
    run: RunDirectory,
    stop: StopRequest,
) -> bool:
    world, views = state.world, view_spec(config)
    unreadable = UnreadableLog(
        run.path / "unreadable_images.txt", len(source), config.data.max_unreadable, write=world.is_main
    )
    batches = image_loader(
        source,
        batch_size=config.batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        start_step=state.step,
        end_step=schedule.end_step,
        workers=config.data.workers,
        sample_views=partial(_sample, config.seed, views),
        pin_memory=world.device.type == "cuda",
        supply=supply,
    )
    evaluate = _online_knn(config, source, state, world) if schedule.evaluate_every_steps else None
    try:
        return train(runner, state, batches, views, schedule, run, unreadable=unreadable, evaluate=evaluate, stop=stop)
    except UserError as error:
        if world.is_main:
            raise
        # What happens to one process only must be said by that process.
        raise RunFailed(f"rank {world.rank}: {error}") from error


def plan_norm(config: PretrainConfig, processes: int) -> NormPlan:
    """BatchNorm groups of the images that a process sees in one pass.

    Raises:
        UserError: processes and accumulation passes do not divide the global batch, or groups do not tile it.
    """
    if config.batch_size % (processes * config.optim.accumulate):
        raise UserError(
            f"batch_size={config.batch_size} is not a multiple of {processes} processes x "
            f"optim.accumulate={config.optim.accumulate}; change one of them"
        )
    per_pass = config.batch_size // processes // config.optim.accumulate
    return plan_normalization(config.model.norm.kind, config.model.norm.group, per_pass, processes)


def open_images(config: PretrainConfig, cache_dir: Path | None) -> ImageSource:
    """The images a config names."""
    return open_source(
        config.data.kind,
        config.data.root,
        list_file=config.data.list,
        subset=config.data.subset,
        long_tailed=config.data.long_tailed,
        splits=config.data.splits,
        seed=config.seed,
        cache_dir=cache_dir,
    )


def _open_images_once(config: PretrainConfig, world: World) -> ImageSource:
    """The images, scanned by the main process and read from its index by the others and by later starts."""
    out = Path(config.out)
    if world.is_main:
        make_folder(out)
        source = open_images(config, cache_dir=out)
    world.barrier()
    return source if world.is_main else open_images(config, cache_dir=out)


def view_spec(config: PretrainConfig) -> ViewSpec:
    """The views a config describes."""
    large, small = config.views.large, config.views.small
    return ViewSpec(
        large=CropGroup(large.count, large.size, large.scale),
        small=CropGroup(small.count, small.size, small.scale) if small.count else None,
        constraint=config.views.constraint,
        min_overlap=config.views.min_overlap,
        max_iou=config.views.max_iou,
        augmentation=config.views.augmentation,
    )


def plan_schedule(config: PretrainConfig, images: int) -> Schedule:
    """The config's epochs and minutes as steps.

    Raises:
        UserError: fewer images than a batch.
    """
    per_epoch = steps_per_epoch(images, config.batch_size)
    total = config.epochs * per_epoch
    keep, evaluate = config.checkpoint.keep_every_epochs, config.online_knn.every_epochs
    return Schedule(
        steps_per_epoch=per_epoch,
        total_steps=total,
        end_step=min(total, config.max_steps or total),
        learning_rate=config.optim.lr,
        warmup_steps=round(config.optim.warmup_epochs * per_epoch),
        log_every=config.log.every,
        save_every_steps=config.checkpoint.every_steps,
        save_every_minutes=config.checkpoint.every_minutes,
        keep_last=config.checkpoint.keep_last,
        keep_every_steps=keep * per_epoch if keep else None,
        evaluate_every_steps=evaluate * per_epoch if evaluate else None,
    )


def queue_warnings(config: PretrainConfig, images: int) -> list[str]:
    """What is doubtful about the queue's size for this many images."""
    if config.model.queue <= images // 2:
        return []
    fits = images // 2 // config.batch_size * config.batch_size
    return [
        f"model.queue={config.model.queue} is larger than half of the {images} images: an image's own key of the last "
        "epoch becomes a negative; " + (f"model.queue={fits} would fit" if fits else "lower batch_size and model.queue")
    ]


def describe_run(
    config: PretrainConfig, source: ImageSource, schedule: Schedule, kind: str, group: int, world: World
) -> list[str]:
    """What is about to happen, in three lines."""
    views = config.views
    crops = f"{views.large.count}x{views.large.size}"
    if views.small.count:
        crops += f" + {views.small.count}x{views.small.size} ({views.constraint})"
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return [
        f"{len(source):,} images of kind '{config.data.kind}' in '{config.data.root}'"
        + (f", {len(source.class_names)} labels for monitoring" if source.class_names else ", no labels"),
        f"{config.model.backbone}, crops {crops}, augmentation {views.augmentation}, "
        f"queue {config.model.queue}, k {config.neighbours.k} x {config.neighbours.weight}",
        f"{schedule.end_step} steps of {config.batch_size} images ({schedule.steps_per_epoch} an epoch) on "
        f"{world.size} x {name}, {config.precision}, BatchNorm {kind} in groups of {group}",
    ]


def draw_views(config: PretrainConfig, source: ImageSource, supply: ImageSupply, views: ViewSpec, path: Path) -> None:
    """Write the picture of what the network sees, for the first images of the first epoch that can be read."""
    from polyscene.ssl.views.pictures import views_picture  # matplotlib is slow to import and only needed here

    batch = next(
        iter(
            image_loader(
                source,
                batch_size=min(8, len(source)),
                rank=0,
                world_size=1,
                seed=config.seed,
                start_step=0,
                end_step=1,
                workers=0,
                sample_views=partial(_sample, config.seed, views),
                pin_memory=False,
                supply=supply,
            )
        )
    )
    views_picture(batch.images(), batch.params, views, path)


def _sample(seed: int, views: ViewSpec, epoch: int, indices, sizes):
    return sample_views(seed, epoch, indices, sizes, views)


def _create_state(config: PretrainConfig, source: ImageSource, world: World) -> TrainingState:
    # The same weights and queue on every process: nothing is broadcast.
    torch.manual_seed(config.seed)
    encoder = Encoder(create_backbone(config.model.backbone), config.model.dim)
    queue = KeyQueue(config.model.queue, config.model.dim, encoder.feature_dim, labels=source.labels is not None)
    model = MoCo(encoder, queue, config.model.momentum).to(world.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.query.parameters(),
        lr=config.optim.lr,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    identity = {
        "arch": config.model.backbone,
        "dataset": f"{config.data.kind}:{len(source)}",
        "config_hash": run_hash(run_values(config), HARMLESS),
    }
    return TrainingState(model, optimizer, world, identity)


def _finished(path: Path, schedule: Schedule) -> bool:
    saved = list_checkpoints(path / "checkpoints")
    done = checkpoint_step(saved[-1]) if saved else 0
    return done >= schedule.end_step and (path / "backbone.safetensors").exists()


def _write_backbone(
    config: PretrainConfig, source: ImageSource, state: TrainingState, schedule: Schedule, run: RunDirectory
) -> None:
    weights = averaged_backbone(state)
    if not run.main:
        return
    metadata = {
        **state.identity,
        "epochs": f"{state.step / schedule.steps_per_epoch:g}",
        "step": str(state.step),
        "method": "kNN-MoCo" if config.neighbours.k and config.neighbours.weight else "MoCo-v2",
    }
    path = run.path / "backbone.safetensors"
    write_weights(BackboneWeights(config.model.backbone, weights, metadata), path)
    run.log(f"finished after {state.step} steps; backbone: '{path}'")


def _online_knn(
    config: PretrainConfig, source: ImageSource, state: TrainingState, world: World
) -> Callable[[], dict[str, float]] | None:
    """kNN accuracy of the query backbone: on held-out images, or leave-one-out on the training images."""
    if source.labels is None:
        return None
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(source))[: config.online_knn.images])
    labels = torch.as_tensor(np.asarray(source.labels)[chosen])
    held_out = None if config.online_knn.held_out is None else _held_out(config.online_knn.held_out, source)
    size = config.views.large.size

    def features(paths: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
        return image_features(
            state.model.query.backbone,
            paths,
            resize=resize_for(size),
            crop=size,
            device=world.device,
            workers=min(config.data.workers, 4),
            skip_unreadable=True,
        )

    def evaluate() -> dict[str, float]:
        value = 0.0
        if world.is_main:
            bank, kept = features([source.path(int(i)) for i in chosen])
            if held_out is None:
                predicted = knn_predict(bank, bank, labels[kept], k=config.online_knn.k, exclude_self=True)
                value = accuracy(predicted, labels[kept])
            else:
                queries, shown = features(held_out[0])
                predicted = knn_predict(queries, bank, labels[kept], k=config.online_knn.k)
                value = accuracy(predicted, held_out[1][shown])
        world.barrier()
        return {"knn_accuracy": value}

    return evaluate


def _held_out(folder: str, source: ImageSource) -> tuple[list[Path], torch.Tensor]:
    """Held-out images with the training classes' numbers.

    Raises:
        UserError: no folder of the data set has the name of a training class.
    """
    held = open_source("folder", folder)
    names = {name: number for number, name in enumerate(source.class_names or ())}
    held_names = held.class_names or ()
    usable = [i for i in range(len(held)) if held_names and held_names[int(held.labels[i])] in names]
    if not usable:
        raise UserError(
            f"online_knn.held_out='{folder}' has no sub-folder named like a training class; "
            f"expected for example '{folder}/{next(iter(names))}'"
        )
    labels = torch.tensor([names[held_names[int(held.labels[i])]] for i in usable])
    return [held.path(i) for i in usable], labels
