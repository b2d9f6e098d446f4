"""Photo-like JPEG files for benchmarks, where no data set is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_COARSEST = 5  # pixels on the long side of the first layer


def write_photos(folder: Path, count: int, *, seed: int, size: tuple[int, int] = (480, 640), quality: int = 90) -> None:
    """Write ``00000.jpg`` .. as large on the disk as photographs of this size are in COCO, every fourth one upright.

    Layers of noise, each twice as fine as the last and weaker, have the falling spectrum of natural images; shapes with
    sharp edges and a little grain come on top.

    Args:
        folder: of the files; made if there is none.
        count: of the files.
        seed: of everything.
        size: height and width in pixels.
        quality: of the JPEG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = size if number % 4 else size[::-1]
        generator = np.random.default_rng([seed, number])
        Image.fromarray(_photo(generator, height, width)).save(folder / f"{number:05d}.jpg", quality=quality)


def _photo(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8."""
    pixels, strength, side = np.full((height, width, 3), 120.0, np.float32), 40.0, _COARSEST
    while side < max(height, width):
        # Colours vary with brightness more than against it.
        grid = generator.normal(0, strength, (side, side, 1)) + generator.normal(0, strength / 3, (side, side, 3))
        channels = [Image.fromarray(channel) for channel in grid.astype(np.float32).transpose(2, 0, 1)]
        layer = [np.asarray(channel.resize((width, height), Image.BICUBIC)) for channel in channels]
        pixels += np.stack(layer, axis=-1)
        strength, side = strength * 0.84, side * 2
    shapes = Image.new("L", (width, height))
    draw = ImageDraw.Draw(shapes)
    for shade in range(1, 9):
        centre, spread = generator.uniform((0, 0), (width, height)), generator.uniform(20, 0.3 * width)
        corners = centre + generator.normal(0, spread, (int(generator.integers(3, 7)), 2))
        draw.polygon([tuple(corner) for corner in corners], fill=shade)
    tints = generator.normal(0, 45, (9, 3)).astype(np.float32)
    tints[0] = 0
    pixels += tints[np.asarray(shapes)] + generator.normal(0, 8, pixels.shape).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)
