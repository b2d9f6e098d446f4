"""``polyscene predict``: a trained multi-task model on a user's own photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from polyscene.downstream.multitask.data.opening import task_of
from polyscene.downstream.multitask.models.model_file import load_model
from polyscene.downstream.multitask.prediction import predict_files
from polyscene.downstream.multitask.rcm.image_moments import find_images
from polyscene.runtime.config import build, parse_words
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar

from .predict_config import PredictConfig

_SHOWN = 5  # unreadable photos that are named


def predict(model: Path, words: Sequence[str]) -> int:
    """Write coloured predictions of all tasks, and one overview a photo; returns the exit code.

    Args:
        model: run directory or model file.
        words: photos (files, folders, or text files that list photos), and ``key=value`` settings.

    Raises:
        UserError: no such model or photo, none that can be read, a task that the model lacks, or a wrong setting.
    """
    places, config = parse_arguments(words)
    photos = find_photos(places, config.count)
    if config.longest is not None and config.longest < 32:
        raise UserError(f"longest={config.longest} is too small; it must be at least 32 pixels")
    device = choose_device(config.device)
    saved = load_model(model)
    for task in config.tasks or ():
        saved.model.check_present(task)
    specs = {task: task_of(saved.tasks[task]) for task in config.tasks or saved.tasks}
    out = Path(config.out) if config.out else (model if model.is_dir() else model.parent) / "predictions"
    console = Console(stderr=True, highlight=False)
    with ProgressBar(console, "predicting", len(photos)) as bar:
        files = predict_files(
            saved.model.eval().to(device),
            photos,
            specs,
            out,
            precision=config.precision,
            multiple=saved.options.multiple,
            longest=config.longest,
            arrays=config.arrays,
            progress=bar.update,
        )
    for unreadable in files.unreadable[:_SHOWN]:
        console.print(f"warning: {unreadable.reason}", style="yellow", markup=False, soft_wrap=True)
    if not files.pictures:
        raise UserError(f"none of the {len(photos)} photos can be read; first: {files.unreadable[0].reason}")
    left = f", {len(files.unreadable)} left out because they cannot be read" if files.unreadable else ""
    print(f"'{out}': {len(files.pictures)} photos, {', '.join(specs)}{left}")
    return 0


def parse_arguments(words: Sequence[str]) -> tuple[list[Path], PredictConfig]:
    """Split a command line into photos and settings.

    Raises:
        UserError: a wrong setting.
    """
    # A file whose name has an equals sign is a photo.
    settings = [word for word in words if "=" in word and not Path(word).expanduser().exists()]
    places = [Path(word) for word in words if word not in settings]
    return places, build(PredictConfig, parse_words(settings), source="predict")


def find_photos(places: Sequence[Path], count: int | None = None) -> list[Path]:
    """The photos that files, folders and lists name, each once, in their order.

    Raises:
        UserError: none named, or a place that does not exist or holds none.
    """
    if not places:
        raise UserError("no images named; give files, a folder, or a text file that lists images")
    if count is not None and count < 1:
        raise UserError(f"count={count} is too small; it must be at least 1")
    found = list(dict.fromkeys(photo for place in places for photo in find_images(place)))
    if count is None or count >= len(found):
        return found
    return [found[i * len(found) // count] for i in range(count)]
