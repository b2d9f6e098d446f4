"""Predictions for photos: sizes, padding, pictures, names, and photos that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from polyscene.downstream.multitask.models.base import DenseModel, Outputs
from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.overview import NARROWEST, PANEL, task_keys
from polyscene.downstream.multitask.prediction import output_names, predict, predict_files
from polyscene.downstream.multitask.tasks import depth, edges, normals, segmentation
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import normalise

SPECS = {
    "segmentation": segmentation.task(3, ("background", "left", "right")),
    "edges": edges.task(),
    "normals": normals.task(),
    "depth": depth.task(),
}


class ByColour(DenseModel):
    """Outputs that are known: brightness decides the class, red the edges, all three the normals, green the depth."""

    def __init__(self):
        nn.Module.__init__(self)
        self.shift = nn.Parameter(torch.zeros(()))
        self.seen = []
        self.heads = nn.Module()
        self.heads.tasks = nn.ModuleDict({task: nn.Identity() for task in SPECS})

    def forward(self, images, tasks=None):
        self.seen.append(tuple(images.shape))
        brightness = images.mean(1, keepdim=True)
        classes = torch.cat([torch.full_like(brightness, -9), -brightness, brightness], dim=1)
        values = {
            "segmentation": classes,
            "edges": images[:, :1],
            "normals": images,
            "depth": images[:, 1:2],
        }
        return Outputs({task: values[task] for task in tasks})


@pytest.fixture
def photo():
    """(3, 30, 50) uint8, dark on the left, bright on the right."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 60, (3, 30, 50), generator=generator, dtype=torch.uint8)
    image[:, :, 25:] += 190
    return image


def write(path, image):
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


def test_predictions_have_the_photos_size(photo):
    model = ByColour()
    found = predict(model, photo, SPECS, multiple=16)
    assert model.seen == [(1, 3, 32, 64)]
    inputs = normalise(photo)
    assert found["segmentation"].dtype == torch.int64
    assert torch.equal(found["segmentation"], torch.where(inputs.mean(0) > 0, 2, 1))
    torch.testing.assert_close(found["edges"], inputs[0].sigmoid())
    torch.testing.assert_close(found["normals"], nn.functional.normalize(inputs, dim=0))
    torch.testing.assert_close(found["depth"], inputs[1].clamp(min=0))


def test_padding_is_the_mean_colour(weights, photo):
    """Filling up is what the network sees as zero: a photo that has the size already, with that border, is the same."""
    model = build_model(ModelOptions("multi_task", head_width=8), weights("resnet10t"), {"depth": 1})
    specs = {"depth": SPECS["depth"]}
    padded = torch.tensor((124, 116, 104), dtype=torch.uint8).view(3, 1, 1).repeat(1, 32, 64)
    padded[:, :30, :50] = photo
    found, expected = predict(model, photo, specs), predict(model, padded, specs)
    assert found["depth"].shape == (30, 50)
    torch.testing.assert_close(found["depth"], expected["depth"][:30, :50])
    with torch.no_grad():
        model.heads.tasks["depth"].prediction.bias.fill_(2.0)
    rounded = predict(model, photo, specs, precision="bf16")["depth"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, predict(model, photo, specs)["depth"], rtol=0.05, atol=0.05)


def test_a_large_photo_is_reduced_for_the_network_only(photo):
    model = ByColour()
    large = photo.repeat_interleave(4, 1).repeat_interleave(4, 2)
    found = predict(model, large, SPECS, multiple=8, longest=100)
    assert model.seen == [(1, 3, 64, 104)]  # 120 x 200 reduced to 60 x 100, filled up to multiples of 8
    assert found["depth"].shape == (120, 200)
    assert found["normals"].shape == (3, 120, 200)
    expected = torch.where(torch.arange(200) < 100, 1, 2).expand(120, 200)
    assert (found["segmentation"] == expected).float().mean() > 0.98
    torch.testing.assert_close(found["normals"].norm(dim=0), torch.ones(120, 200))
    predict(model, photo, SPECS, longest=100)
    assert model.seen[-1] == (1, 3, 32, 64)


def test_files(photo, tmp_path):
    first, second = write(tmp_path / "a.png", photo), write(tmp_path / "b.png", photo.flip(2)[:, :20])
    out, done = tmp_path / "new" / "out", []
    files = predict_files(ByColour(), [first, second], SPECS, out, arrays=True, progress=done.append)
    assert done == [1, 2]
    assert files.unreadable == []
    names = {path.name for path in out.iterdir()}
    assert names == {
        f"{name}{end}" for name in "ab" for end in (*(f"_{task}.png" for task in SPECS), "_overview.png", ".npz")
    }
    predictions = predict(ByColour(), photo, SPECS)
    for task, spec in SPECS.items():
        assert files.pictures[first][task] == out / f"a_{task}.png"
        assert np.array_equal(np.asarray(Image.open(files.pictures[first][task])), spec.picture(predictions[task]))
    with np.load(files.arrays[first], allow_pickle=False) as arrays:
        assert {task: arrays[task].dtype.name for task in arrays} == {
            "segmentation": "uint8",
            "edges": "float32",
            "normals": "float32",
            "depth": "float32",
        }
        assert all(np.array_equal(arrays[task], predictions[task].numpy()) for task in SPECS)
    again = predict_files(ByColour(), [first], {"depth": SPECS["depth"]}, out)
    assert again.arrays == {}
    assert list(again.pictures[first]) == ["depth"]


def test_the_overview_shows_photo_and_tasks(photo, tmp_path):
    path = write(tmp_path / "a.png", photo)
    files = predict_files(ByColour(), [path], SPECS, tmp_path)
    sheet = np.asarray(Image.open(files.overviews[path]))
    columns = (sheet.shape[1] - 8) // (len(SPECS) + 1)
    assert columns == PANEL + 8
    # Panels start below the titles; 400 x 240 as 50 x 30. Classes keep their exact colours.
    panel = sheet[24 : 24 + 240, 8 + columns : 8 + columns + PANEL]
    colours = {tuple(colour) for colour in panel.reshape(-1, 3).tolist()}
    legend = {tuple(SPECS["segmentation"].picture(torch.tensor([[label]]))[0, 0].tolist()) for label in (1, 2)}
    assert colours == legend
    tall = write(tmp_path / "tall.png", photo.permute(0, 2, 1).repeat(1, 4, 1))
    files = predict_files(ByColour(), [tall], {"depth": SPECS["depth"]}, tmp_path)
    assert Image.open(files.overviews[tall]).width == 2 * (NARROWEST + 8) + 8


def test_keys():
    labels = torch.tensor([[1] * 150 + [2] * 49 + [0]])
    assert [(key.text, key.colour) for key in task_keys(SPECS["segmentation"], labels)] == [
        ("left 75%", (128, 0, 0)),
        ("right 24%", (0, 128, 0)),
        ("background <1%", (0, 0, 0)),
    ]
    many = segmentation.task(40, (), background=False)
    assert [key.text for key in task_keys(many, torch.arange(40).repeat_interleave(2)[None])] == [
        f"class {label} 2%" for label in range(6)
    ]
    metres = torch.tensor([[4.0, 1.26]])
    (near, near_colour), (far, far_colour) = task_keys(SPECS["depth"], metres)
    assert (near, far) == ("1.3 m", "4.0 m")
    assert [list(far_colour), list(near_colour)] == SPECS["depth"].picture(metres)[0].tolist()
    assert task_keys(SPECS["edges"], torch.zeros(2, 2)) == task_keys(SPECS["normals"], torch.zeros(3, 2, 2)) == []


def test_names_are_unique():
    paths = [Path(path) for path in ("a/1.jpg", "b/1.jpg", "1.png", "1_2.jpg", "photo.of.me.jpg")]
    assert output_names(paths) == ["1", "1_2", "1_3", "1_2_2", "photo.of.me"]


def test_unreadable_photos_are_reported_and_the_others_go_on(photo, tmp_path):
    good = write(tmp_path / "good.png", photo)
    broken, absent = tmp_path / "broken.jpg", tmp_path / "absent.jpg"
    broken.write_bytes(b"no image")
    done = []
    files = predict_files(ByColour(), [broken, good, absent], SPECS, tmp_path / "out", progress=done.append)
    assert [each.path for each in files.unreadable] == [broken, absent]
    assert all(str(each.path) in each.reason and "\n" not in each.reason for each in files.unreadable)
    assert list(files.overviews) == [good]
    assert done == [1, 2, 3]
    assert {path.name.split("_")[0] for path in (tmp_path / "out").iterdir()} == {"good"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), UserError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), UserError),
        (RuntimeError("another"), RuntimeError),
    ],
)
def test_too_large_a_photo_is_one_line(photo, tmp_path, monkeypatch, error, raised):
    def fail(*arguments):
        raise error

    model, path = ByColour(), write(tmp_path / "a.png", photo)
    monkeypatch.setattr(model, "forward", fail)
    said = "another" if raised is RuntimeError else "a.png' with 50 x 30 pixels does not fit into memory; set longest"
    with pytest.raises(raised, match=said):
        predict_files(model, [path], SPECS, tmp_path / "out")


def test_refusals(photo, tmp_path):
    with pytest.raises(UserError, match="no images"):
        predict_files(ByColour(), [], SPECS, tmp_path / "out")
    model = ByColour()
    del model.heads.tasks["depth"]
    with pytest.raises(UserError, match="'depth' is not in this model"):
        predict_files(model, [write(tmp_path / "a.png", photo)], SPECS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    photos = [tmp_path / "a.png", write(tmp_path / "a_depth.png", photo)]
    with pytest.raises(UserError, match=r"'a_depth.png' in .* is one of the photos"):
        predict_files(ByColour(), photos, SPECS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_depth.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        predict_files(ByColour(), [tmp_path / "a.png"], SPECS, tmp_path / "file")
