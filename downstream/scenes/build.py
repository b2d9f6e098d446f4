"""``polyscene scenes``: plan the rooms, render them in parallel and write the data set."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import write_text

from .contact import contact_sheet
from .layouts import Shot, encode_image, encode_truth, write_lists, write_scene
from .lighting import Lighting
from .readme import readme_text
from .render import Annotation, Camera, World, annotate, develop, look
from .rooms import sample_room
from .streets import sample_street
from .viewpoints import sample_camera, sample_lighting, view_score

# Part of the arguments that a data set must match: raise it whenever a change alters the written bytes.
FORMAT = "polyscene-scenes-1"
IMAGES_PER_ROOM = 15
SHEET_ROWS = 6


@dataclass(frozen=True)
class SceneSummary:
    """What ``write_scenes`` wrote: paths and counts. ``already_complete`` = it was there before, nothing was done."""

    out: Path
    rooms: int
    images: int
    train: int
    held_out: int
    contact_sheet: Path
    already_complete: bool


def is_street(room: int) -> bool:
    """Whether world number ``room`` is a street (every third) rather than a furnished room."""
    return room % 3 == 2


def plan(count: int) -> list[list[Shot]]:
    """The pictures of every room: ``count`` in all, spread evenly, about 15 a room.

    A fifth of a room's pictures (at least one) is held out. With m training pictures, the training cameras are
    0..C-1 and lightings 0..L-1, where C = ceil(sqrt(m)) and L = ceil(m / C); picture i uses camera i mod C and
    lighting i div C. Held-out picture k has camera C + k and lighting L + k: neither is seen in training.
    """
    rooms = max(min(4, count // 2), round(count / IMAGES_PER_ROOM))
    shots = []
    for room in range(rooms):
        total = count // rooms + (room < count % rooms)
        held = max(1, round(total / 5))
        train = total - held
        cameras = math.ceil(math.sqrt(train))
        lightings = math.ceil(train / cameras)
        label = f"{'street' if is_street(room) else 'room'}_{room:03d}"
        views = [("train", i % cameras, i // cameras) for i in range(train)]
        views += [("val", cameras + k, lightings + k) for k in range(held)]
        shots.append([Shot(f"{label}_c{c:02d}_l{light:02d}", label, split, c, light) for split, c, light in views])
    return shots


@lru_cache(maxsize=2)
def build_world(seed: int, room: int) -> tuple[World, tuple[float, float, float] | float]:
    """World number ``room`` of data set ``seed`` and its extent; a function of these two numbers only."""
    rng = np.random.default_rng([seed, room])
    return (sample_street if is_street(room) else sample_room)(rng)


def room_camera(seed: int, room: int, number: int) -> Camera:
    """Camera ``number`` of a room; independent of how many pictures are taken."""
    world, extent = build_world(seed, room)
    return sample_camera(np.random.default_rng([seed, room, 1, number]), world, extent)


def room_lighting(seed: int, room: int, number: int) -> Lighting:
    """Lighting ``number`` of a room."""
    world, extent = build_world(seed, room)
    return sample_lighting(np.random.default_rng([seed, room, 2, number]), world, extent)


def _write_room(out: Path, seed: int, size: tuple[int, int], room: int, shots: list[Shot]) -> list[dict]:
    """Render and write the pictures of one room; geometry is cast once per camera and lit several times."""
    world, _ = build_world(seed, room)
    lightings = {number: room_lighting(seed, room, number) for number in {shot.lighting for shot in shots}}
    results = {}
    for number in sorted({shot.camera for shot in shots}):
        camera = room_camera(seed, room, number)
        view = look(world, camera, size)
        truth = encode_truth(annotate(world, camera, view), not is_street(room))
        for shot in shots:
            if shot.camera == number:
                image = develop(world, view, lightings[shot.lighting])
                results[shot.name] = write_scene(out, shot, image, truth)
    return [results[shot.name] for shot in shots]


def _sheet_row(seed: int, room: int, shots: list[Shot], size: tuple[int, int]) -> tuple[np.ndarray, Annotation]:
    """The training picture of a room that shows it best: its best camera and, there, the brightest lighting."""
    world, _ = build_world(seed, room)
    train = [shot for shot in shots if shot.split == "train"]
    cameras = {shot.camera: room_camera(seed, room, shot.camera) for shot in train}
    best = max(cameras, key=lambda number: view_score(world, cameras[number]))
    view = look(world, cameras[best], size)
    lights = [shot.lighting for shot in train if shot.camera == best]
    images = [develop(world, view, room_lighting(seed, room, light)) for light in lights]
    image = max(images, key=lambda x: float(x.mean() + x.std()))
    return image, annotate(world, cameras[best], view)


def write_scenes(
    out: Path,
    *,
    count: int = 600,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> SceneSummary:
    """Render the built-in data set and write it under ``out`` in four published layouts (see its README.txt).

    The bytes depend on ``count``, ``size`` and ``seed`` only, whatever the number of workers. ``scenes.json`` is
    written last: a folder that holds it is complete and is left alone when asked for again. An interrupted folder
    (``scenes.partial.json``) is written again from the start.

    Args:
        out: folder to create; must be absent, empty, or written by this function with the same arguments.
        count: pictures in all, training and held-out together; at least 4.
        size: (height, width) in pixels; each at least 32.
        seed: any non-negative integer.
        workers: processes; 1 renders in this one. More are spawned, so a script needs an ``if __name__ ==
            "__main__"`` guard.
        progress: called with (pictures done, count) after each room.

    Raises:
        UserError: bad arguments, a folder that holds something else, or a folder that cannot be written.
    """
    size = _checked(count, size, seed, workers)
    out = Path(out)
    arguments = {"format": FORMAT, "count": count, "size": list(size), "seed": seed}
    shots = plan(count)
    done = _prepare(out, arguments)
    if not done:
        try:
            _build(out, arguments, shots, size, seed, workers, progress)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{out}: writing scenes failed ({reason}); free space or choose another OUT") from error
    train = sum(s.split == "train" for room in shots for s in room)
    return SceneSummary(out, len(shots), count, train, count - train, out / "contact_sheet.png", done)


def _checked(count: int, size: tuple[int, int], seed: int, workers: int) -> tuple[int, int]:
    for name, value, least in (("count", count, 4), ("seed", seed, 0), ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name}={value!r}: give a whole number of at least {least}")
    size = tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(size) != 2 or any(isinstance(x, bool) or not isinstance(x, int) or not 32 <= x <= 4096 for x in size):
        raise UserError(f"size={list(size)!r}: give [height, width], each between 32 and 4096 pixels")
    return size


def _prepare(out: Path, arguments: dict) -> bool:
    """Create the folder, or find that it is already complete (True); refuse anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for the scenes")
    if out.is_dir() and any(out.iterdir()):
        for name in ("scenes.json", "scenes.partial.json"):
            if not (out / name).exists():
                continue
            try:
                held = json.loads((out / name).read_text())["arguments"]
            except (ValueError, KeyError, TypeError, OSError):
                raise UserError(f"{out / name}: is damaged; remove the folder or choose another OUT") from None
            differing = [key for key in arguments if held.get(key) != arguments[key]]
            if differing:
                pairs = ", ".join(f"{key}={held.get(key)} (asked: {arguments[key]})" for key in differing)
                raise UserError(f"{out}: holds scenes with {pairs}; choose another OUT or remove the folder")
            return name == "scenes.json"
        raise UserError(f"{out}: is not empty and not a scenes folder; choose another OUT")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "scenes.partial.json", json.dumps({"arguments": arguments}))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another OUT") from error
    return False


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Child processes started inside use one thread: the processes are the parallelism."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _build(out, arguments, shots, size, seed, workers, progress) -> None:
    count, done = arguments["count"], 0
    found: list[list[dict]] = [[] for _ in shots]
    job = partial(_write_room, out, seed, size)

    def finish(room: int, result: list[dict]) -> None:
        nonlocal done
        found[room] = result
        done += len(result)
        if progress is not None:
            progress(done, count)

    if workers == 1:
        for room, views in enumerate(shots):
            finish(room, job(room, views))
    else:
        context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has started threads
        with _one_thread_each(), ProcessPoolExecutor(min(workers, len(shots)), mp_context=context) as pool:
            pending = {pool.submit(job, room, views): room for room, views in enumerate(shots)}
            try:
                for future in as_completed(pending):
                    finish(pending[future], future.result())
            except BrokenProcessPool as error:
                raise UserError(
                    f"{out}: a process that draws died, mostly because memory ran out; use workers=1 and run again"
                ) from error
            except BaseException:  # a full disk or Ctrl-C: do not render the rooms that are still waiting
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    flat = [shot for room in shots for shot in room]
    indoor = [not is_street(number) for number, room in enumerate(shots) for _ in room]
    write_lists(out, flat, [f for room in found for f in room], indoor)
    rows = [_sheet_row(seed, k, shots[k], size) for k in range(min(SHEET_ROWS, len(shots)))]
    (out / "contact_sheet.png").write_bytes(encode_image(contact_sheet(rows), "PNG"))
    (out / "README.txt").write_text(readme_text(arguments, shots), encoding="utf-8")
    content = {"arguments": arguments, "scenes": [asdict(shot) for shot in flat]}
    write_text(out / "scenes.json", json.dumps(content, indent=1))
    (out / "scenes.partial.json").unlink(missing_ok=True)
