"""Pictures of label propagation: overlays with outlines, a contact strip, an animation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from polyscene.runtime.files import atomic_writer
from polyscene.runtime.images import read_image

from .sequences import Video

# Bright and far apart; the first is rare in photos. An eleventh object takes the first colour again.
COLOURS = (
    (255, 0, 200),
    (0, 210, 255),
    (255, 221, 0),
    (57, 220, 80),
    (255, 100, 20),
    (130, 80, 255),
    (255, 255, 255),
    (0, 90, 255),
    (160, 95, 30),
    (0, 150, 136),
)
FILL = 0.5
GAP = 6
HEADER = 20
INK, PAPER = (40, 40, 40), (250, 250, 250)
STRIP_ROWS, STRIP_WIDTH = 5, 260
GIF_FRAMES, GIF_SECONDS = 40, 5.0
GIF_WIDTHS = (240, 180, 120)
GIF_BYTES = 1_500_000


def overlay(frame: np.ndarray, labels: np.ndarray, objects: Sequence[int]) -> np.ndarray:
    """The frame with every object tinted in its colour and outlined.

    Args:
        frame: (H, W, 3) uint8.
        labels: (H, W) uint8 label map.
        objects: labels of the objects; the position decides the colour.

    Returns:
        (H, W, 3) uint8.
    """
    picture = frame.astype(np.float32)
    for position, label in enumerate(objects):
        colour = np.array(COLOURS[position % len(COLOURS)], dtype=np.float32)
        mask = labels == label
        picture[mask] = (1 - FILL) * picture[mask] + FILL * colour
        # The outline lies inside the object, and not along the picture's edge, where the object may go on.
        picture[mask & ~binary_erosion(mask, border_value=1)] = colour
    return picture.round().astype(np.uint8)


def draw_strip(
    path: Path,
    video: Video,
    columns: Mapping[str, Sequence[np.ndarray]],
    objects: Sequence[int],
    rows: int = STRIP_ROWS,
) -> None:
    """Write a PNG with one row per chosen frame: the frame, and an overlay per column.

    Args:
        path: the PNG; its folder must exist.
        video: frames.
        columns: title -> label maps (H, W) of all frames.
        objects: labels of the objects.
        rows: frames shown, from the first to the last, evenly spaced.
    """
    chosen = _spread(len(video.frames), rows)
    lines = []
    for index in chosen:
        frame = _small(video.frames[index], STRIP_WIDTH)
        panels = [frame, *(overlay(frame, _fit(maps[index], frame), objects) for maps in columns.values())]
        lines.append(panels)
    height, width = lines[0][0].shape[:2]
    titles = ["frame", *columns]
    sheet = Image.new(
        "RGB", (len(titles) * (width + GAP) + GAP, len(lines) * (height + HEADER + GAP) + HEADER + GAP), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP) + 1, 6), title, fill=INK)
    for row, (index, panels) in enumerate(zip(chosen, lines)):
        top = HEADER + row * (height + HEADER + GAP)
        given = ", mask given" if index == 0 else ""
        draw.text((GAP + 1, top + 5), f"{video.frames[index].name}{given}", fill=INK)
        for column, panel in enumerate(panels):
            sheet.paste(Image.fromarray(panel), (GAP + column * (width + GAP), top + HEADER))
    with atomic_writer(path) as file:
        sheet.save(file, format="PNG", optimize=True)


def draw_animation(
    path: Path, video: Video, columns: Mapping[str, Sequence[np.ndarray]], objects: Sequence[int]
) -> None:
    """Write an animated GIF: the overlays of all columns side by side, at most 40 frames and 1.5 MB.

    Args:
        path: the GIF; its folder must exist.
        video: frames.
        columns: title -> label maps (H, W) of all frames.
        objects: labels of the objects.
    """
    for width in GIF_WIDTHS:
        data = _animation(video, columns, objects, width)
        if len(data) <= GIF_BYTES:
            break
    with atomic_writer(path) as file:
        file.write(data)


def _animation(video: Video, columns: Mapping[str, Sequence[np.ndarray]], objects: Sequence[int], width: int) -> bytes:
    pictures = []
    chosen = _spread(len(video.frames), GIF_FRAMES)
    for index in chosen:
        frame = _small(video.frames[index], width)
        height, width = frame.shape[:2]
        picture = Image.new("RGB", (len(columns) * (width + GAP) - GAP, height + HEADER), PAPER)
        draw = ImageDraw.Draw(picture)
        for column, (title, maps) in enumerate(columns.items()):
            draw.text((column * (width + GAP) + 2, 4), title, fill=INK)
            panel = overlay(frame, _fit(maps[index], frame), objects)
            picture.paste(Image.fromarray(panel), (column * (width + GAP), HEADER))
        # Without dithering: noise would triple the file.
        pictures.append(picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    milliseconds = max(40, min(500, round(1000 * GIF_SECONDS / len(chosen))))
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=True
    )
    return buffer.getvalue()


def _spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` positions from the first to the last of ``count``."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})


def _small(path: Path, width: int) -> np.ndarray:
    """(h, width, 3) uint8; a frame that is narrower stays as it is."""
    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _fit(labels: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A label map at the size of ``frame``."""
    height, width = frame.shape[:2]
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
