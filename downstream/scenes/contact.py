"""The contact sheet: a grid of pictures beside their depth, normals, labels, boundaries and saliency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from .annotate import boundaries, saliency
from .classes import palette
from .layouts import encode_normals
from .render import Annotation

COLUMNS = ("image", "depth", "normals", "classes", "boundaries", "saliency")


def panels(image: np.ndarray, truth: Annotation) -> list[np.ndarray]:
    """The six columns of one row, each (H, W, 3) uint8."""
    seen = truth.depth > 0
    inverse = np.where(seen, 1 / np.maximum(truth.depth, 0.1), 0)
    low, high = np.percentile(inverse[seen], (1, 99)) if seen.any() else (0, 1)
    depth = colormaps["viridis"](np.clip((inverse - low) / max(high - low, 1e-6), 0, 1))[..., :3]
    depth[~seen] = 0.12
    mask = saliency(truth.instances, truth.labels)[..., None]
    grey = image.mean(axis=2, keepdims=True) * 0.25
    lines = 255 - boundaries(truth.instances)[..., None] * np.uint8(225)
    return [
        image,
        (depth * 255).astype(np.uint8),
        encode_normals(truth.normals),
        palette()[truth.labels],
        np.repeat(lines, 3, axis=2),
        np.where(mask, image, grey).astype(np.uint8),
    ]


def contact_sheet(rows: Sequence[tuple[np.ndarray, Annotation]], gap: int = 6) -> Image.Image:
    """Image with one row per (image, annotation) pair and one titled column per annotation."""
    height, width = rows[0][1].labels.shape
    top = 22
    columns = len(COLUMNS)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap + top), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((gap + column * (width + gap) + 2, 6), title, fill=(40, 40, 40))
    for row, (image, truth) in enumerate(rows):
        for column, panel in enumerate(panels(image, truth)):
            sheet.paste(Image.fromarray(panel), (gap + column * (width + gap), top + gap + row * (height + gap)))
    return sheet
