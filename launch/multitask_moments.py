"""Response Initialization of a run: what its moments are measured on, and where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyscene.downstream.multitask.rcm.image_moments import find_images, image_moments
from polyscene.downstream.multitask.rcm.moments import Moments
from polyscene.downstream.multitask.rcm.moments_file import load_moments, moments_metadata, read_metadata, save_moments
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.weights import BackboneWeights

MOMENTS_FILE = "moments.safetensors"


@dataclass(frozen=True)
class InitSource:
    """Where the moments come from.

    Attributes:
        name: of the images, or of the file, in words.
        images: to be measured; empty where ``moments`` are known.
        moments: read from a file, or None.
        count: images behind ``moments``.
    """

    name: str
    images: Sequence[Path] = ()
    moments: dict[str, Moments] | None = None
    count: int = 0


def init_images(place: str, count: int | None) -> InitSource:
    """Images that the user names.

    Raises:
        UserError: no such place, or no images there.
    """
    try:
        return InitSource(place, find_images(place, count))
    except UserError as error:
        raise UserError(f"model.rcm.init_images: {error}") from error


def known_moments(path: str, weights: BackboneWeights) -> InitSource:
    """Moments that another run has measured.

    Raises:
        UserError: no such file, or moments of other weights.
    """
    try:
        moments = load_moments(path, weights)
    except UserError as error:
        raise UserError(f"model.rcm.init_images: {error}") from error
    return InitSource(path, (), moments, int(read_metadata(path).get("images", 0)))


def response_moments(
    source: InitSource,
    weights: BackboneWeights,
    folder: Path,
    world: World,
    run: RunDirectory,
    *,
    reparameterize: str,
    rank: float | None,
    workers: int,
) -> dict[str, Moments]:
    """Moments of the responses to the initialisation images, measured once and kept in ``folder`` with a picture.

    Args:
        source: of the moments.
        weights: the backbone.
        folder: gets ``moments.safetensors`` and ``pictures/spectrum.png``; where they lie, they are read.
        world: the processes, which share the images.
        run: for the log.
        reparameterize: ``spatial`` or ``all``: convolutions that are measured.
        rank: marked in the picture.
        workers: processes that read images.

    Raises:
        UserError: no image can be read, or the file in ``folder`` is of other weights.
    """
    path = folder / MOMENTS_FILE
    # All processes must take the same way, also where some see the main one's file late.
    if world.maximum(int(world.is_main and path.is_file())):
        run.log(f"Response Initialization: moments of '{path}'")
        return load_moments(path, weights)
    if source.moments is not None:
        run.log(f"Response Initialization: moments of '{source.name}' ({source.count:,} images)")
        moments, count = source.moments, source.count
    else:
        run.log(f"Response Initialization: responses to {len(source.images):,} images of '{source.name}'")
        moments = image_moments(
            weights,
            source.images,
            reparameterize=reparameterize,
            workers=workers,
            world=world,
            console=run.console,
            warn=run.warn,
        )
        count = len(source.images)
    if world.is_main:
        from polyscene.downstream.multitask.rcm.spectrum_plot import draw_spectrum  # matplotlib is slow to import

        save_moments(path, moments, moments_metadata(weights, count, source=source.name))
        (folder / "pictures").mkdir(exist_ok=True)
        draw_spectrum(moments, folder / "pictures" / "spectrum.png", rank)
    world.barrier()
    return moments
