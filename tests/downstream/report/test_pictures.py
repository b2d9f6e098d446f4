"""Pictures become data URIs of a sensible size."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.report.pictures import embed_picture, embed_pictures
from polyscene.runtime.errors import UserError


def decode(uri):
    head, _, data = uri.partition(";base64,")
    return head, Image.open(io.BytesIO(base64.b64decode(data)))


def animation(path, frames=3, size=(40, 30)):
    pictures = [Image.new("RGB", size, (80 * i, 0, 0)) for i in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0)


def test_a_large_picture_is_scaled_down_and_says_so(tmp_path, picture):
    picture(tmp_path / "wide.png", size=(2000, 100))
    embedded = embed_picture(tmp_path / "wide.png")
    assert (embedded.width, embedded.height) == (1600, 80)
    assert embedded.note == "scaled down from 2000 × 100 pixels"
    assert decode(embedded.uri)[1].size == (1600, 80)


def test_the_smallest_format_wins(tmp_path, picture):
    picture(tmp_path / "noise.png", size=(300, 300))
    Image.new("RGB", (300, 300), "white").save(tmp_path / "flat.png")
    noise, flat = embed_picture(tmp_path / "noise.png"), embed_picture(tmp_path / "flat.png")
    assert noise.size < (tmp_path / "noise.png").stat().st_size / 2
    assert decode(noise.uri)[0] in ("data:image/jpeg", "data:image/webp")
    assert flat.size <= (tmp_path / "flat.png").stat().st_size


def test_colours_stay(tmp_path):
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (200, 1)), np.tile(ramp[::-1], (200, 1)), np.full((200, 320), 90, np.uint8)], -1)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    shown = np.asarray(decode(embed_picture(tmp_path / "ramp.png").uri)[1].convert("RGB"), float)
    assert np.abs(shown - pixels).mean() < 3


def test_transparency_and_sixteen_bits(tmp_path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert decode(embed_picture(tmp_path / "clear.png").uri)[1].convert("RGBA").getpixel((5, 5))[3] == 0
    deep = decode(embed_picture(tmp_path / "deep.png").uri)[1]
    assert deep.convert("L").getpixel((5, 5)) == pytest.approx(40_000 // 256, abs=2)


def test_an_animation_stays_one_beside_its_first_frame(tmp_path):
    animation(tmp_path / "a.gif")
    embedded = embed_picture(tmp_path / "a.gif")
    assert decode(embedded.uri)[1].n_frames == 3
    assert getattr(decode(embedded.still)[1], "n_frames", 1) == 1
    still = embed_picture(tmp_path / "a.gif", animated=False)
    assert still.still is None
    assert still.note == "first frame of an animation"


def test_a_large_animation_becomes_its_first_frame(tmp_path, monkeypatch):
    monkeypatch.setattr("polyscene.downstream.report.pictures.LARGEST_ANIMATION", 50)
    animation(tmp_path / "a.gif")
    assert embed_picture(tmp_path / "a.gif").still is None


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(tmp_path / "turned.jpg", exif=exif)
    embedded = embed_picture(tmp_path / "turned.jpg")
    assert (embedded.width, embedded.height) == (20, 60)


def test_pictures_get_smaller_until_they_fit_and_then_are_left_out(tmp_path, picture):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        picture(file, size=(1500, 60), seed=i)
    done = []
    large = embed_pictures(files, progress=done.append)
    assert [large[f].width for f in files] == [1500] * 3
    assert done == [1, 2, 3]
    full = sum(large[f].size for f in files)
    some = embed_pictures(files, budget=int(full * 0.75))
    assert {some[f].width for f in files} == {1200}
    assert sum(some[f].size for f in files) <= full * 0.75
    least = embed_pictures(files, budget=int(full * 0.08))
    assert least[files[0]].width == 600
    assert "too large" in least[files[2]]


def test_files_that_cannot_be_shown(tmp_path, picture):
    picture(tmp_path / "cut.png", size=(200, 200))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bad.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    names = ["cut.png", "text.png", "bad.svg", "absent.png"]
    found = embed_pictures([tmp_path / name for name in names])
    assert all(isinstance(text, str) and "\n" not in text for text in found.values())
    assert "is missing" in found[tmp_path / "absent.png"]
    with pytest.raises(UserError, match="not a readable picture"):
        embed_picture(tmp_path / "text.png")
