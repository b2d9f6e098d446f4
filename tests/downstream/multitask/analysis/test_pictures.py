"""The pictures show what they were given."""

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.analysis.parameters import Growth
from polyscene.downstream.multitask.analysis.pictures import draw_features, draw_growth, draw_similarity


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(pixels, colour, distance=12):
    return int((np.abs(pixels - np.array(colour)).max(-1) < distance).sum())


BLUE, RED = (5, 48, 97), (103, 0, 31)  # the ends of matplotlib's RdBu


def test_agreement_is_blue_and_opposition_red(tmp_path):
    agree, oppose = torch.ones(2, 2), torch.tensor([[1.0, -1], [-1, 1]])
    draw_similarity([("layer1", agree)], ["a", "b"], tmp_path / "agree.png")
    draw_similarity([("layer1", oppose), ("layer2", agree)], ["a", "b"], tmp_path / "oppose.png")
    first, second = read(tmp_path / "agree.png"), read(tmp_path / "oppose.png")
    assert near(first, BLUE) > 20 * near(first, RED)
    assert near(second, RED) > 5000
    assert second.shape[1] > 1.3 * first.shape[1]  # a panel more


def test_growth(tmp_path):
    growth = {
        "single": Growth("single", (10_000_000, 20_000_000), (1, 2), 0, {"convolutions": 10_000_000}),
        "rcm": Growth("rcm", (11_000_000, 12_000_000), (1, 2), 10_000_000, {"modulators": 1_000_000}),
    }
    draw_growth(growth, "resnet18", tmp_path / "growth.png")
    pixels = read(tmp_path / "growth.png")
    blue = np.argwhere(np.abs(pixels - np.array([0, 0x72, 0xB2])).max(-1) < 12)
    assert len(blue) > 500  # the line and its name
    draw_growth(growth, "resnet18", tmp_path / "again.png")
    assert (tmp_path / "growth.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.fixture
def images():
    return [np.full((40, 60, 3), 200, dtype=np.uint8), np.full((60, 40, 3), 100, dtype=np.uint8)]


def test_features(images, tmp_path):
    green, violet = (
        np.zeros((4, 6, 3), dtype=np.uint8) + np.array(c, dtype=np.uint8) for c in ((0, 200, 0), (150, 0, 200))
    )
    pictures = {"single-task": {"layer1": [green, green]}, "RCM": {"layer1": [violet, green]}}
    draw_features(images, pictures, "Depth", tmp_path / "features.png")
    pixels = read(tmp_path / "features.png")
    cells = {name: near(pixels, colour, 3) for name, colour in {"green": (0, 200, 0), "violet": (150, 0, 200)}.items()}
    # The second image is upright: its cells are as wide and more than twice as high.
    assert cells["green"] > 4 * cells["violet"] > 4 * 20_000
    assert near(pixels, (200, 200, 200), 1) > 20_000
    assert near(pixels, (100, 100, 100), 1) > 40_000
