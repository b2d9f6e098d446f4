import numpy as np
import pytest
from PIL import Image

from polyscene.launch.predict import find_photos, parse_arguments
from polyscene.runtime.errors import UserError


def test_photos_of_any_size(dense_run, draw, polyscene, tmp_path):
    draw(tmp_path / "in" / "wide.jpg", 1, (97, 33))
    draw(tmp_path / "in" / "tall.png", 2, (20, 70))
    code, printed, err = polyscene("predict", dense_run, tmp_path / "in", f"out={tmp_path / 'out'}", "arrays=true")
    assert code == 0, err
    assert "2 photos, segmentation, depth" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("_segmentation.png", "_depth.png", "_overview.png", ".npz")
    assert names == {f"{name}{kind}" for name in ("wide", "tall") for kind in kinds}
    for name, size in (("wide", (97, 33)), ("tall", (20, 70))):
        assert Image.open(tmp_path / "out" / f"{name}_depth.png").size == size
        with np.load(tmp_path / "out" / f"{name}.npz") as arrays:
            assert arrays["depth"].shape == size[::-1]
            assert arrays["segmentation"].max() <= 2


def test_a_model_file_and_some_of_its_tasks(dense_run, draw, polyscene, tmp_path):
    draw(tmp_path / "a=b.jpg", 1)  # not a setting
    model = tmp_path / "moved.safetensors"
    model.write_bytes((dense_run / "model.safetensors").read_bytes())
    code, _, err = polyscene("predict", model, tmp_path / "a=b.jpg", "tasks=[depth]", "longest=32")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "predictions").iterdir()} == {"a=b_depth.png", "a=b_overview.png"}


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(dense_run, draw, polyscene, tmp_path):
    draw(tmp_path / "good.jpg", 1)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = f"out={tmp_path / 'out'}"
    code, printed, err = polyscene("predict", dense_run, tmp_path / "bad.jpg", tmp_path / "good.jpg", out)
    assert code == 0
    assert "1 photos" in printed
    assert "1 left out" in printed
    assert "warning:" in err
    assert "bad.jpg" in err
    code, _, err = polyscene("predict", dense_run, tmp_path / "bad.jpg", out)
    assert code == 2
    assert "none of the 1 photos can be read" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.jpg"], "'missing.jpg' does not exist"),
        (["out=x"], "no images named"),
        (["PHOTO", "size=3"], "unknown key 'size'"),
        (["PHOTO", "tasks=[normals]"], "task 'normals' is not in this model, which has: segmentation, depth"),
        (["PHOTO", "longest=8"], "longest=8 is too small"),
        (["PHOTO", "count=0"], "count=0 is too small"),
    ],
)
def test_refused(words, expected, dense_run, draw, polyscene, tmp_path):
    draw(tmp_path / "photo.jpg", 1)
    arguments = [str(tmp_path / "photo.jpg") if word == "PHOTO" else word for word in words]
    code, _, err = polyscene("predict", dense_run, *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not (dense_run / "predictions").exists()


def test_no_model(draw, polyscene, tmp_path):
    draw(tmp_path / "photo.jpg", 1)
    code, _, err = polyscene("predict", tmp_path, tmp_path / "photo.jpg")
    assert code == 2
    assert "give a finished run of polyscene multitask" in err


def test_a_photo_named_twice_is_predicted_once_and_count_spreads(draw, tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, file in enumerate(files):
        draw(file, i)
    assert find_photos([tmp_path, files[0]]) == files
    assert find_photos([tmp_path], 3) == files[::2]
    places, config = parse_arguments(["photos", "out=there"])
    assert ([str(p) for p in places], config.out) == (["photos"], "there")
    with pytest.raises(UserError, match="must be"):
        parse_arguments(["photos", "arrays=maybe"])
