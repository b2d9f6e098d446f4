"""Predictions of all tasks for photos of any size, as numbers and as pictures (library of ``polyscene predict``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from polyscene.runtime.errors import UserError
from polyscene.runtime.features import normalise
from polyscene.runtime.files import atomic_writer, make_folder
from polyscene.runtime.images import UnreadableImage, read_image

from .data.transforms import pad_image
from .image_labels import image_prediction, write_label_table
from .models.base import DenseModel
from .overview import draw_overview
from .tasks.spec import TaskSpec

TABLE = "predictions.csv"


class Unreadable(NamedTuple):
    """A photo that was left out.

    Attributes:
        path: the file.
        reason: one line that names it.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class PredictionFiles:
    """What :func:`predict_files` did.

    Attributes:
        pictures: photo -> task -> PNG.
        overviews: photo -> PNG of photo and all tasks.
        arrays: photo -> NPZ, where asked for.
        table: CSV of what image-level tasks say; None if there are none, or no photo can be read.
        unreadable: photos that could not be decoded, in their order; nothing was written for them.
    """

    pictures: dict[Path, dict[str, Path]]
    overviews: dict[Path, Path]
    arrays: dict[Path, Path]
    unreadable: list[Unreadable]
    table: Path | None = None


@torch.no_grad()
def predict(
    model: DenseModel,
    image: Tensor,
    specs: Mapping[str, TaskSpec],
    *,
    precision: str = "fp32",
    multiple: int = 16,
    longest: int | None = None,
) -> dict[str, Tensor]:
    """Predict all tasks of ``specs`` for one photo, in the photo's size.

    As in evaluation, the photo is filled up at the right and bottom to a multiple of the network's stride and the
    predictions are cut back.

    Args:
        model: in evaluation mode, on the device to be used.
        image: (3, H, W) uint8.
        specs: tasks of the model.
        precision: ``fp32`` or ``bf16`` (autocast) for the network's arithmetic.
        multiple: of which the network's input has height and width.
        longest: a photo whose longer side has more pixels is reduced to this for the network, and the raw outputs
            enlarged again. None: never. Objects should appear about as large as in the training images.

    Returns:
        Task -> prediction on the CPU: (H, W) classes, probabilities or metres, or (3, H, W) unit vectors; of an
        image-level task `image_prediction`: (channels,) class probabilities or values.

    Raises:
        UserError: a task that the model does not have.
    """
    size = (image.shape[1], image.shape[2])
    inner = _reduced(size, longest)
    if inner != size:
        smaller = F.interpolate(image[None].float(), inner, mode="bilinear", align_corners=False, antialias=True)
        image = smaller[0].round().clamp(0, 255).to(torch.uint8)
    device = model.place()
    batch = normalise(pad_image(image, multiple=multiple)[None].to(device)).contiguous(
        memory_format=torch.channels_last
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(batch, tuple(specs)).final
    predictions = {}
    for task, spec in specs.items():
        if spec.image_level:
            predictions[task] = image_prediction(spec, outputs[task].float()).cpu()
            continue
        output = outputs[task].float()[..., : inner[0], : inner[1]]
        if inner != size:
            output = F.interpolate(output, size, mode="bilinear", align_corners=False)
        predictions[task] = spec.activate(output)[0].cpu()
    return predictions


def predict_files(
    model: DenseModel,
    paths: Sequence[Path],
    specs: Mapping[str, TaskSpec],
    out: Path,
    *,
    precision: str = "fp32",
    multiple: int = 16,
    longest: int | None = None,
    arrays: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PredictionFiles:
    """Predict photos one by one and write ``NAME_TASK.png``, ``NAME_overview.png`` and, if asked, ``NAME.npz``.

    What image-level tasks say stands in ``predictions.csv``, a line a photo, and in the overviews. A photo that cannot
    be decoded is reported and the others go on. Existing files are replaced.

    Args:
        model: in evaluation mode, on the device to be used.
        paths: photos.
        specs: tasks of the model to predict.
        out: folder; made if absent.
        precision, multiple, longest: see :func:`predict`.
        arrays: also write the predictions as numbers, an array per task: classes as uint8 or int16, others float32;
            class probabilities of image-level tasks.
        progress: called with the number of photos done.

    Raises:
        UserError: no photos, a task that the model does not have, a file that would replace one of the photos, a
            photo too large for the memory, or files cannot be written.
    """
    if not paths:
        raise UserError("no images to predict; name files or a folder with at least one image")
    for task in specs:
        model.check_present(task)
    names = output_names(paths)
    _check_no_photo_is_replaced(paths, names, specs, out)
    make_folder(out)
    files = PredictionFiles({}, {}, {}, [])
    whole = {task: spec for task, spec in specs.items() if spec.image_level}
    rows: list[tuple[str, dict[str, Tensor]]] = []
    for done, (path, name) in enumerate(zip(paths, names), start=1):
        try:
            image = read_image(path)
        except UnreadableImage as error:
            files.unreadable.append(Unreadable(path, str(error)))
        else:
            try:
                predictions = predict(model, image, specs, precision=precision, multiple=multiple, longest=longest)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                pixels = f"{image.shape[2]} x {image.shape[1]} pixels"
                raise UserError(f"'{path}' with {pixels} does not fit into memory; set longest=1024 or less") from error
            _write(files, path, out / name, image, predictions, specs, arrays)
            rows.append((str(path), {task: predictions[task] for task in whole}))
        if progress is not None:
            progress(done)
    if not whole or not rows:
        return files
    write_label_table(out / TABLE, whole, rows)
    return replace(files, table=out / TABLE)


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the files of every photo: its own without ending; of equal ones, the later get ``_2``, ``_3``, ..."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name)
        names.append(name)
    return names


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a class of its own for GPUs only.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _check_no_photo_is_replaced(
    paths: Sequence[Path], names: Sequence[str], specs: Mapping[str, TaskSpec], out: Path
) -> None:
    photos = {path.resolve() for path in paths}
    for name in names:
        for end in (*specs, "overview"):
            if (out / f"{name}_{end}.png").resolve() in photos:
                raise UserError(f"'{name}_{end}.png' in '{out}' is one of the photos; write to another folder")


def _write(
    files: PredictionFiles,
    photo: Path,
    stem: Path,
    image: Tensor,
    predictions: Mapping[str, Tensor],
    specs: Mapping[str, TaskSpec],
    arrays: bool,
) -> None:
    pictures = {task: spec.picture(predictions[task]) for task, spec in specs.items() if not spec.image_level}
    files.pictures[photo] = {}
    for task, picture in pictures.items():
        path = stem.with_name(f"{stem.name}_{task}.png")
        _save_png(path, Image.fromarray(picture))
        files.pictures[photo][task] = path
    files.overviews[photo] = stem.with_name(f"{stem.name}_overview.png")
    sheet = draw_overview(image.permute(1, 2, 0).numpy(), photo.name, pictures, predictions, specs)
    _save_png(files.overviews[photo], sheet)
    if arrays:
        files.arrays[photo] = stem.with_name(f"{stem.name}.npz")
        with atomic_writer(files.arrays[photo]) as file:
            np.savez_compressed(file, **{task: _compact(values) for task, values in predictions.items()})


def _save_png(path: Path, picture: Image.Image) -> None:
    with atomic_writer(path) as file:
        picture.save(file, format="PNG", compress_level=4)


def _compact(values: Tensor) -> np.ndarray:
    if values.is_floating_point():
        return values.float().numpy()
    return values.numpy().astype(np.uint8 if int(values.max()) < 256 else np.int16)


def _reduced(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """(H, W) with the longer side at most ``longest``, in the same proportion."""
    if longest is None or max(size) <= longest:
        return size
    return tuple(max(1, round(side * longest / max(size))) for side in size)
