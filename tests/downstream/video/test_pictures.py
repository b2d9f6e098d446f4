"""Overlays, contact strip and animation."""

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.video.pictures import COLOURS, GIF_BYTES, draw_animation, draw_strip, overlay
from polyscene.downstream.video.sequences import folder_video


@pytest.fixture
def video(tmp_path):
    """Fifty frames of noise, which no GIF compresses, and the mask of the first."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(50):
        Image.fromarray(rng.integers(0, 256, (60, 300, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    mask = np.zeros((60, 300), dtype=np.uint8)
    mask[20:40, 50:120] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return folder_video(folder, tmp_path / "mask.png"), [mask] * 50


def test_overlay_tints_and_outlines():
    frame = np.full((10, 12, 3), 100, dtype=np.uint8)
    labels = np.zeros((10, 12), dtype=np.uint8)
    labels[2:7, 0:5] = 9
    picture = overlay(frame, labels, (4, 9))
    second = np.array(COLOURS[1])
    assert (picture[labels == 0] == 100).all()
    assert (picture[2, 1] == second).all()
    assert (picture[4, 4] == second).all()
    assert np.abs(picture[4, 2] - (50 + second / 2)).max() <= 0.5
    assert np.abs(picture[4, 0] - (50 + second / 2)).max() <= 0.5  # no outline along the picture's edge


def test_colours_are_distinct():
    colours = np.array(COLOURS, dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(len(colours))
    assert distances.min() > 90


def test_strip_shows_a_row_per_frame_and_a_column_per_title(tmp_path, video):
    clip, maps = video
    draw_strip(tmp_path / "strip.png", clip, {"weights": maps, "random": maps}, (1,), rows=3)
    with Image.open(tmp_path / "strip.png") as image:
        width, height = image.size
        pixels = np.asarray(image.convert("RGB"))
    assert width == 3 * (260 + 6) + 6
    assert height == 3 * (52 + 20 + 6) + 20 + 6
    outline = (pixels == COLOURS[0]).all(axis=-1)
    assert not outline[:, :266].any()
    assert outline[:, 272:532].any()
    assert outline[:, 538:798].any()


def test_animation_is_bounded(tmp_path, video):
    clip, maps = video
    draw_animation(tmp_path / "clip.gif", clip, {"weights": maps, "random": maps}, (1,))
    assert (tmp_path / "clip.gif").stat().st_size <= GIF_BYTES
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == 40
        assert image.info["loop"] == 0
