"""Evaluation of a multi-task model at native resolution, by any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from polyscene.runtime.distributed import World
from polyscene.runtime.features import normalise
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.worker_loader import WorkerLoader

from .data.records import DenseImages, Sample
from .data.transforms import pad_image, stretch_image
from .edge_counting import EdgeCounter, is_counted
from .step import resized
from .tasks.spec import TaskSpec, target_size

Size = tuple[int, int]

_WAITING = 4
"""Samples that may wait for others of their size, in batches."""


@torch.no_grad()
def measure(
    model: nn.Module,
    images: DenseImages,
    *,
    tasks: Sequence[str],
    device: torch.device,
    precision: str = "fp32",
    workers: int = 0,
    world: World,
    stretch: Size | None = None,
    multiple: int = 16,
    batch_size: int = 8,
    console: Console | None = None,
) -> dict[str, Any]:
    """Task -> its metric over all images; the same on every process.

    Predictions are compared with the targets at their own resolution. Images are padded at the right and bottom, and
    the outputs cut back; or stretched, and the raw outputs resized (bilinear) back. Outputs of image-level tasks stay
    as they are. Images whose padded sizes agree are run together.

    Args:
        model: a `DenseModel`, or what is called like one, on ``device``; its training mode is put back afterwards. With
            several processes the same on all of them (`polyscene.runtime.batch_norm.averaged_statistics`).
        images: the split, with at least ``tasks``.
        tasks: what to run and judge.
        device: where the model is.
        precision: ``fp32`` or ``bf16`` (autocast) for the model.
        workers: processes that read images, and processes that count edges; 0: this one does it all.
        world: the processes of the run; each takes every ``world.size``-th image.
        stretch: (height, width) that every image is stretched to (MTI-Net); None pads instead.
        multiple: sides are padded to a multiple of this.
        batch_size: images run together, at most.
        console: where a progress bar is drawn.

    Raises:
        UserError: a file is missing or wrong, a task is unknown, or a worker died.
    """
    images = images.only(tasks)
    mine = range(world.rank, len(images), world.size)
    loader = WorkerLoader(
        _Samples(images, mine), start=0, end=len(mine), workers=workers, pack=True, prefetch=max(2, batch_size // 2)
    )
    metrics = {name: images.tasks[name].make_metric() for name in tasks}
    was_training = model.training
    model.eval()
    done = 0
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        counters = {
            name: stack.enter_context(EdgeCounter(metric, workers))
            for name, metric in metrics.items()
            if workers and is_counted(metric)
        }
        bar = stack.enter_context(ProgressBar(console, "evaluating", len(mine))) if console else None
        for samples in batches_by_size(loader, batch_size, stretch, multiple):
            predictions = predict(
                model, [s.image for s in samples], images.tasks, device, precision, stretch=stretch, multiple=multiple
            )
            for sample, predicted in zip(samples, predictions):
                for name, (values, valid) in sample.targets.items():
                    if name in counters:
                        counters[name].update(predicted[name], values, valid)
                    else:
                        metrics[name].update(predicted[name], values.to(device), valid.to(device))
            done += len(samples)
            if bar:
                bar.update(done)
        for counter in counters.values():
            counter.finish()
    return {name: _merged(images.tasks[name], metric, world) for name, metric in metrics.items()}


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Sequence[Tensor],
    specs: Mapping[str, TaskSpec],
    device: torch.device,
    precision: str = "fp32",
    *,
    stretch: Size | None = None,
    multiple: int = 16,
) -> list[dict[str, Tensor]]:
    """Activated predictions of images that are run together.

    Args:
        model: as in :func:`measure`, in evaluation mode.
        images: (3, H, W) uint8 of any sizes that agree once padded or stretched.
        specs: the tasks wanted.
        device: where the model is.
        precision: ``fp32`` or ``bf16``.
        stretch: (height, width) that the network sees; None pads to ``multiple``.
        multiple: of which the padded sides are multiples.

    Returns:
        For every image, task -> prediction at the image's size (1x1 of image-level tasks) as `TaskSpec.activate`
        returns it, without N.
    """
    prepared = [pad_image(i, multiple=multiple) if stretch is None else stretch_image(i, stretch) for i in images]
    batch = normalise(torch.stack(prepared).to(device)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(batch, tuple(specs)).final
    results: list[dict[str, Tensor]] = [{} for _ in images]
    for name, spec in specs.items():
        for index, image in enumerate(images):
            size = (image.shape[1], image.shape[2])
            output = outputs[name][index : index + 1].float()
            own = output[..., : size[0], : size[1]] if stretch is None else resized(output, target_size(spec, size))
            results[index][name] = spec.activate(own)[0]
    return results


def class_scores(metrics: Mapping[str, Any], specs: Mapping[str, TaskSpec]) -> dict[str, dict[str, float]]:
    """Task -> class -> IoU, for tasks with named classes; classes that do not occur are left out.

    Of image-level tasks, the share of a class's images that are found.

    Args:
        metrics: what :func:`measure` returned.
        specs: the tasks.
    """
    found = {}
    for name, metric in metrics.items():
        of_classes = getattr(metric, "class_accuracy" if specs[name].image_level else "class_iou", None)
        if specs[name].classes and of_classes is not None:
            found[name] = {label: score for label, score in zip(specs[name].classes, of_classes()) if score == score}
    return found


def batches_by_size(
    samples: Iterator[Sample], batch_size: int, stretch: Size | None, multiple: int
) -> Iterator[list[Sample]]:
    """Put samples whose network inputs have one size together, in the order in which they come.

    At most ``_WAITING`` batches of samples wait; beyond, the fullest size goes first.
    """
    waiting: dict[Size, list[Sample]] = {}
    for sample in samples:
        height, width = sample.image.shape[1:]
        size = stretch or (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
        group = waiting.setdefault(size, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


class _Samples:
    """Reads the images of one process."""

    def __init__(self, images: DenseImages, chosen: range):
        self.images, self.chosen = images, chosen

    def __call__(self, number: int) -> Sample:
        return self.images.read(self.chosen[number])


def _merged(spec: TaskSpec, metric: Any, world: World) -> Any:
    """The metric over the images of all processes."""
    if world.size == 1:
        return metric
    whole, *others = (_loaded(spec, state) for state in world.gather_objects(metric.state()))
    for other in others:
        whole.merge(other)
    return whole


def _loaded(spec: TaskSpec, state: Any) -> Any:
    metric = spec.make_metric()
    metric.load_state(state)
    return metric
