"""What a multi-task model predicts for some images of the data set, above the truth."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from polyscene.downstream.multitask.data.records import DenseImages, Sample
from polyscene.downstream.multitask.evaluation import predict
from polyscene.downstream.multitask.models.base import DenseModel
from polyscene.downstream.multitask.overview import Panel, draw_strip, image_key, task_keys
from polyscene.downstream.multitask.tasks.spec import TaskSpec
from polyscene.runtime.files import atomic_writer
from polyscene.runtime.results import Picture


def draw_predictions(
    model: DenseModel,
    images: DenseImages,
    folder: Path,
    *,
    count: int,
    device: torch.device,
    precision: str,
    stretch: tuple[int, int] | None,
    multiple: int,
) -> list[Picture]:
    """Write ``prediction_01.png`` and so on for the first images; returns what results.json says of them.

    Args:
        model: on ``device``; its training mode is put back afterwards.
        images: with the tasks to be drawn.
        folder: of the pictures; exists.
        count: images to draw, at most.
        device, precision, stretch, multiple: see `evaluation.predict`.
    """
    was_training = model.training
    model.eval()
    pictures = []
    for index in range(min(count, len(images))):
        sample = images.read(index)
        predictions = predict(
            model, [sample.image], images.tasks, device, precision, stretch=stretch, multiple=multiple
        )[0]
        name = f"prediction_{index + 1:02d}.png"
        sheet = draw_comparison(sample, {task: p.cpu() for task, p in predictions.items()}, images.tasks)
        with atomic_writer(folder / name) as file:
            sheet.save(file, format="PNG")
        pictures.append(Picture(f"pictures/{name}", f"'{sample.name}': predictions, and the truth below"))
    model.train(was_training)
    return pictures


def draw_comparison(sample: Sample, predictions: dict[str, torch.Tensor], specs: dict[str, TaskSpec]) -> Image.Image:
    """Photo and predictions in the upper row, photo and truth in the lower; unlabelled pixels are grey.

    What image-level tasks say stands below the photos.

    Args:
        sample: image and targets.
        predictions: task -> prediction on the CPU, see `TaskSpec.activate`.
        specs: the tasks.
    """
    photo = sample.image.permute(1, 2, 0).numpy()
    whole = {task: spec for task, spec in specs.items() if spec.image_level}
    said = [image_key(spec, predictions[task]) for task, spec in whole.items()]
    true = [image_key(s, sample.targets[t].values) for t, s in whole.items() if sample.targets[t].valid.any()]
    upper, lower = [Panel(sample.name, photo, said)], [Panel("truth", photo, true)]
    for task, spec in specs.items():
        if spec.image_level:
            continue
        predicted, (values, valid) = predictions[task], sample.targets[task]
        blend = predicted.is_floating_point()
        upper.append(Panel(spec.title, spec.picture(predicted), task_keys(spec, predicted), blend=blend))
        # Keys count pixels, so they see the labelled ones only.
        labelled = values[..., valid][..., None]
        keys = task_keys(spec, labelled[0] if labelled.dim() == 3 else labelled) if valid.any() else []
        lower.append(Panel("", spec.picture(values, valid), keys, blend=False))
    strips = [draw_strip(upper), draw_strip(lower)]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), (255, 255, 255))
    sheet.paste(strips[0], (0, 0))
    sheet.paste(strips[1], (0, strips[0].height))
    return sheet
