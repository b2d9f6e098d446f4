"""PNG files as numbers."""

import numpy as np
import pytest
from PIL import Image

from polyscene.runtime import png
from polyscene.runtime.errors import UserError


def test_palette_indices_are_not_expanded(tmp_path):
    values = np.array([[0, 3], [255, 7]], dtype=np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([255 - v // 3 for v in range(768)])
    image.save(tmp_path / "p.png")
    assert (png.read_numbers(tmp_path / "p.png") == values).all()
    shown = np.asarray(image.convert("L"))
    assert (png.read_grey(tmp_path / "p.png") == shown).all()
    assert (shown != values).any()


def test_sixteen_bits_are_kept_or_shortened(tmp_path):
    values = np.array([[0, 256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "i.png")
    assert (png.read_numbers(tmp_path / "i.png") == values).all()
    assert (png.read_grey(tmp_path / "i.png") == [[0, 1, 255]]).all()


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.png")
    Image.new("L", (64, 64)).save(tmp_path / "jpeg.png", format="JPEG")
    whole = (tmp_path / "rgb.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, reason in {
        "rgb.png": r"mask '.*rgb.png' holds colours \(mode RGB\); store one number per pixel",
        "jpeg.png": "it is not a PNG file; store it as one",
        "cut.png": "cannot read the PNG '.*cut.png'",
        "none.png": "it does not exist",
    }.items():
        with pytest.raises(UserError, match=reason) as caught:
            png.read_numbers(tmp_path / name, "mask")
        assert "\n" not in str(caught.value)


def test_pictures_of_impossible_size_are_not_decoded(tmp_path, monkeypatch):
    Image.new("L", (30, 40)).save(tmp_path / "big.png")
    monkeypatch.setattr(png, "MAX_PIXELS", 1199)
    with pytest.raises(UserError, match="30 x 40 pixels"):
        png.read_numbers(tmp_path / "big.png")
