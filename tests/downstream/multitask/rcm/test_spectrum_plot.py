"""The numbers that the spectrum picture and table show."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from polyscene.downstream.multitask.rcm.moments import Moments
from polyscene.downstream.multitask.rcm.response_init import spectrum
from polyscene.downstream.multitask.rcm.spectrum_plot import directions_needed, draw_spectrum, spectrum_table


def diagonal(*variances):
    """Moments with these variances and no mean."""
    values = torch.tensor(variances, dtype=torch.float64)
    return Moments(torch.tensor(10.0, dtype=torch.float64), torch.zeros_like(values), 10 * torch.diag(values))


@pytest.fixture
def found():
    return {"conv1": diagonal(92, 4, 3.5, 0.5), "layer1.0.conv1": diagonal(1, 1, 1, 1), "dead": diagonal(0, 0)}


def test_directions_needed(found):
    curves = spectrum(found)
    assert [directions_needed(curves["conv1"], share) for share in (0.9, 0.92, 0.95, 0.99, 1.0)] == [1, 1, 2, 3, 4]
    assert [directions_needed(curves["layer1.0.conv1"], share) for share in (0.25, 0.26, 1.0)] == [1, 2, 4]
    assert directions_needed(curves["dead"], 0.99) == 1
    assert directions_needed(torch.tensor([0.5, 1 - 1e-9], dtype=torch.float64), 1.0) == 2


def test_table(found):
    text = io.StringIO()
    Console(file=text, width=120).print(spectrum_table(found, rank=0.75))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in text.getvalue().splitlines() if "│" in line
    ]
    assert rows == [
        ["conv1", "4", "1", "2", "3", "3", "99.50%"],
        ["layer1.0.conv1", "4", "4", "4", "4", "3", "75.00%"],
        ["dead", "2", "1", "1", "1", "2", "100.00%"],
    ]
    assert len(spectrum_table(found).columns) == 5


def test_picture(found, tmp_path):
    draw_spectrum(found, tmp_path / "all.png")
    draw_spectrum(found, tmp_path / "rank.png", rank=0.5)
    plain, marked = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("all.png", "rank.png")
    )

    def orange(pixels):
        return int(((pixels[..., 0] > 200) & (pixels[..., 2] < 60) & (abs(pixels[..., 1] - 72) < 30)).sum())

    assert orange(plain) == 0
    assert orange(marked) > 50
    draw_spectrum({f"layer{i}": found["conv1"] for i in range(53)}, tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").height > 2 * plain.shape[0]
