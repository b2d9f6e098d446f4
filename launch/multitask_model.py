"""What ``polyscene multitask`` trains: data, tasks and start values checked first, then the model built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyscene.downstream.multitask.data.opening import (
    TaskRecord,
    TaskSettings,
    image_level_tasks,
    images_with_people,
    open_dense_images,
    task_records,
)
from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.models.build import ModelOptions
from polyscene.downstream.multitask.models.families import Options, check_architecture, make_model
from polyscene.downstream.multitask.models.incremental import add_tasks
from polyscene.downstream.multitask.models.model_file import SavedModel, load_model
from polyscene.downstream.multitask.mti_net.backbones import random_backbone
from polyscene.downstream.multitask.mti_net.build import MultiScaleOptions
from polyscene.downstream.multitask.rcm.moments import Moments
from polyscene.downstream.multitask.tasks.loading import load_task
from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import BackboneWeights, read_weights

from .evaluation import random_weights
from .multitask_config import (
    INTERACTING,
    DenseModelConfig,
    MtiNetConfig,
    MultitaskConfig,
    PadNetConfig,
    auxiliary_tasks,
    chosen_tasks,
    is_multi_scale,
    only_evaluates,
)
from .multitask_moments import InitSource, init_images, known_moments


@dataclass(frozen=True)
class Ingredients:
    """Everything a run is made of, opened and checked; nothing has been written.

    Attributes:
        train: training images with the tasks to be trained, auxiliary ones last; None where nothing is.
        val: images to evaluate on, with the tasks to be evaluated.
        front_val: the same images with the tasks of the front ends to be judged; None where none are.
        records: task to be trained, without auxiliary ones -> what a model file stores of it.
        auxiliary: the same of tasks that only a front end predicts; those of ``base`` where there is one.
        options: of the model; those of ``base`` where there is one.
        weights: pretrained backbone; None with ``base``.
        base: the model that tasks are added to, or None.
        init: what Response Initialization measures, or has measured; None where there is none.
    """

    train: DenseImages | None
    val: DenseImages
    front_val: DenseImages | None
    records: dict[str, TaskRecord]
    auxiliary: dict[str, TaskRecord]
    options: Options
    weights: BackboneWeights | None
    base: SavedModel | None
    init: InitSource | None

    @property
    def arch(self) -> str:
        """Timm name of the backbone."""
        return self.weights.arch if self.weights is not None else self.base.arch

    @property
    def channels(self) -> dict[str, int]:
        """All tasks of the model but auxiliary ones -> channels of their outputs."""
        old = {} if self.base is None else self.base.tasks
        return {name: record.channels for name, record in {**old, **self.records}.items()}

    @property
    def image_level(self) -> tuple[str, ...]:
        """Tasks to be trained that have one output an image; auxiliary ones cannot be, and are named to be refused."""
        return image_level_tasks({**self.records, **self.auxiliary})

    @property
    def auxiliary_channels(self) -> dict[str, int]:
        """Auxiliary task -> channels of its outputs."""
        return {name: record.channels for name, record in self.auxiliary.items()}


def open_ingredients(config: MultitaskConfig) -> Ingredients:
    """Open the data set, the weights or the base model, and the images of Response Initialization.

    Raises:
        UserError: anything that is missing or does not fit, naming the key, file or task.
    """
    tasks = chosen_tasks(config)
    base = None if config.model.base is None else _open_base(config, tasks)
    extra = auxiliary_tasks(config)
    train = None if only_evaluates(config) else open_split(config, config.data.train, (*tasks, *extra))
    val = _open_val(config, tasks, base)
    front_val = None
    if config.evaluate.front_ends:
        known = extra if base is None else [record.source or name for name, record in base.auxiliary.items()]
        front_val = _open_val(config, (*tasks, *known), base)
        front_val = front_val.only([name for name, spec in front_val.tasks.items() if not spec.image_level])
    for split in (train, val):
        if split is not None:
            split.read(0)  # a wrong layout or task file shows here, not after the first minutes
    _check_weighted_tasks(config, (val if train is None else train).tasks)
    options = model_options(config) if base is None else base.options
    records, auxiliary = {}, {} if base is None else base.auxiliary
    if train is not None:
        trained = task_records(train, config.data.kind, task_settings(config))
        auxiliary = {name: trained.pop(name) for name in list(trained)[len(tasks) :]} or auxiliary
        records = trained
    weights = None if base is not None else open_weights(config)
    if weights is not None:
        check_architecture(options, weights.arch)
    init = open_init(config, weights) if base is None and options.needs_moments else None
    return Ingredients(train, val, front_val, records, auxiliary, options, weights, base, init)


def task_settings(config: MultitaskConfig) -> TaskSettings:
    """The choices in what the data set's tasks are."""
    data = config.data
    return TaskSettings(data.void_class, data.depth_protocol, data.saliency_protocol, data.normals_axes)


def open_split(config: MultitaskConfig, split: str, tasks: Sequence[str]) -> DenseImages:
    """A list of the data set with these tasks; the training list without people-free images where that is asked for.

    Raises:
        UserError: see `open_dense_images` and `images_with_people`.
    """
    images = open_dense_images(config.data.kind, config.data.root, split, tasks, task_settings(config))
    if not config.data.person_images_only or split != config.data.train:
        return images
    if "parts" not in images.tasks:
        raise UserError("data.person_images_only=true needs the task parts, whose labels say where people are")
    return images_with_people(images, config.data.kind)


def open_weights(config: MultitaskConfig) -> BackboneWeights:
    """The backbone that ``weights`` names.

    Raises:
        UserError: no such file, unknown format, or another architecture than ``arch``.
    """
    if config.weights == "random" and is_multi_scale(config):
        return random_backbone(config.arch or "resnet50", config.seed)
    if config.weights == "random":
        return random_weights(config.arch or "resnet50", config.seed)
    if (Path(config.weights) / "model.safetensors").exists():
        raise UserError(
            f"weights='{config.weights}' is a multi-task run; give the backbone it started from, or add tasks to it by "
            f"model.base={config.weights}"
        )
    return read_weights(config.weights, config.arch)


def model_options(config: MultitaskConfig) -> Options:
    """The model's options as its library takes them.

    Raises:
        UserError: a value that cannot be.
    """
    model, rcm = config.model, config.model.rcm
    if is_multi_scale(config):
        return MultiScaleOptions(
            kind=model.kind,
            scales=model.scales,
            pyramid_width=model.pyramid_width,
            head=model.head or MultiScaleOptions.head,
            fpm=model.mti_net.fpm,
            fpm_softmax=model.mti_net.fpm_softmax,
            fpm_narrowing=model.mti_net.fpm_narrowing,
            distillation=model.pad_net.distillation,
            width=model.pad_net.width,
        )
    return ModelOptions(
        kind=model.kind,
        head=model.head or ModelOptions.head,
        output_stride=model.output_stride,
        reparameterize=rcm.reparameterize,
        normalized=rcm.normalized,
        response_init=rcm.response_init,
        rank=rcm.rank,
        head_width=model.head_width,
    )


def as_base(config: MultitaskConfig) -> MultitaskConfig:
    """The config with the options of ``model.base`` in place of its own, so that the run records what it trains.

    Raises:
        UserError: ``model.base`` is not a multi-task model.
    """
    if config.model.base is None:
        return config
    model = with_options(config.model, load_model(config.model.base).options)
    if config.evaluate.front_ends and model.kind not in INTERACTING:
        raise UserError(
            f"evaluate.front_ends=true: model.base='{config.model.base}' is a {model.kind} model without front ends"
        )
    return dataclasses.replace(config, model=model)


def with_options(model: DenseModelConfig, options: Options) -> DenseModelConfig:
    """The section with the keys that `model_options` reads set to these options."""
    if isinstance(options, MultiScaleOptions):
        return dataclasses.replace(
            model,
            kind=options.kind,
            head=None if options.interacts else options.head,
            scales=options.scales,
            pyramid_width=options.pyramid_width,
            mti_net=MtiNetConfig(fpm=options.fpm, fpm_softmax=options.fpm_softmax, fpm_narrowing=options.fpm_narrowing),
            pad_net=PadNetConfig(distillation=options.distillation, width=options.width),
        )
    rcm = dataclasses.replace(
        model.rcm,
        reparameterize=options.reparameterize,
        normalized=options.normalized,
        response_init=options.response_init,
        rank=options.rank,
    )
    return dataclasses.replace(
        model,
        kind=options.kind,
        head=options.head,
        head_width=options.head_width,
        output_stride=options.output_stride,
        rcm=rcm,
    )


def build(found: Ingredients, config: MultitaskConfig, moments: dict[str, Moments] | None) -> SavedModel:
    """The model with its start values, on the CPU, and records of all its tasks.

    Args:
        found: what it is made of.
        config: of the run.
        moments: for Response Initialization, where ``found.options`` needs them.

    Raises:
        UserError: what the model's library refuses.
    """
    if found.base is not None:
        return add_tasks(found.base, found.records, config.seed) if found.records else found.base
    model = make_model(
        found.options,
        found.weights,
        found.channels,
        auxiliary=found.auxiliary_channels,
        moments=moments,
        seed=config.seed,
        image_level=found.image_level,
    )
    return SavedModel(model, found.arch, found.options, dict(found.records), auxiliary=dict(found.auxiliary))


def _open_base(config: MultitaskConfig, tasks: Sequence[str]) -> SavedModel:
    base = load_model(config.model.base)
    names = [load_task(task).name if task.endswith(".py") else task for task in tasks]
    if only_evaluates(config):
        for name in names:
            base.model.check_present(name)
        return base
    taken = next((name for name in names if name in base.tasks), None)
    if taken is not None:
        raise UserError(
            f"task '{taken}' is already in model.base='{config.model.base}' ({', '.join(base.tasks)}); give task=NEW, "
            f"or remove it there first: polyscene tasks remove {config.model.base} {taken} OUT"
        )
    if not base.options.takes_tasks:
        raise UserError(
            f"model.base='{config.model.base}' has kind={base.options.kind}, whose encoder is trained; tasks can be "
            "added to rcm and other kinds with parts per task on a frozen encoder only"
        )
    return base


def _open_val(config: MultitaskConfig, tasks: Sequence[str], base: SavedModel | None) -> DenseImages:
    before = () if base is None or not config.evaluate.all_tasks else base.tasks.values()
    named = [record.source or record.name for record in before]
    images = open_split(config, config.data.val, [*named, *(task for task in tasks if task not in named)])
    most = config.data.max_val
    if most is None or most >= len(images):
        return images
    return images.subset([i * len(images) // most for i in range(most)])


def _check_weighted_tasks(config: MultitaskConfig, tasks: Sequence[str]) -> None:
    # A task chosen with task=... leaves the weights of the others in the config, so only a misspelt name is refused.
    known = {*tasks, "segmentation", "parts", "saliency", "edges", "normals", "depth"}
    wrong = next((name for name in config.task_weights or {} if name not in known), None)
    if wrong is not None:
        raise UserError(f"task_weights names '{wrong}', which is no task; the run has {', '.join(tasks)}")


def open_init(config: MultitaskConfig, weights: BackboneWeights) -> InitSource:
    """What Response Initialization starts from: the images or the moments file that the user names, or the data set.

    Raises:
        UserError: no images there, or moments of other weights.
    """
    rcm, data = config.model.rcm, config.data
    if rcm.init_images is not None and rcm.init_images.endswith(".safetensors"):
        return known_moments(rcm.init_images, weights)
    if rcm.init_images is not None:
        return init_images(rcm.init_images, rcm.init_count)
    # Without regard to tasks and people: jobs of one data set then start from one bank and can be merged.
    train = open_dense_images(data.kind, data.root, data.train, chosen_tasks(config), task_settings(config))
    count = len(train) if rcm.init_count is None else min(rcm.init_count, len(train))
    chosen = [train.image_path(i * len(train) // count) for i in range(count)]
    return InitSource(f"{data.kind}:{data.train}", chosen)
