"""Heads on disk, the choice of photos, overlays and pages."""

import json

import pytest
import torch
from safetensors.torch import save_file

from polyscene.downstream.frozen.cam_photos import Photo, draw_photos, stream_views, view_of
from polyscene.downstream.frozen.cam_picture import Row, draw_page, overlay, shorten
from polyscene.downstream.frozen.cam_viewer import Viewer
from polyscene.downstream.frozen.linear_head import check_head, read_head
from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.runtime.weights import BackboneWeights, weights_hash
from polyscene.ssl.moco.encoder import create_backbone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return BackboneWeights("resnet18", create_backbone("resnet18").state_dict())


@pytest.fixture
def head_file(tmp_path, weights):
    """``head_file(**metadata)``: the path of a head with three classes."""

    def write(channels=512, **change):
        metadata = {
            "class_names": json.dumps(["cat", "dog", "cow"]),
            "weights_hash": weights_hash(weights),
            "arch": "resnet18",
            "features": "l2_normalised",
            **change,
        }
        generator = torch.Generator().manual_seed(1)
        tensors = {"weight": torch.randn(3, channels, generator=generator), "bias": torch.zeros(3)}
        kept = {key: value for key, value in metadata.items() if value is not None}
        save_file(tensors, tmp_path / "linear_head.safetensors", metadata=kept)
        return tmp_path / "linear_head.safetensors"

    return write


def test_a_head_is_read_from_its_file_or_run_directory(head_file):
    path = head_file(resize="256", crop="224")
    for place in (path, path.parent):
        head = read_head(place)
        assert (head.class_names, head.normalised, head.view) == (["cat", "dog", "cow"], True, (256, 224))
        assert head.weight.shape == (3, 512)
        assert head.number("cow") == 2
    with pytest.raises(UserError, match=r"no class 'cats'; it has for example cat$"):
        head.number("cats")
    assert not read_head(head_file(features="pooled")).normalised


@pytest.mark.parametrize(
    "change", [{"class_names": None}, {"class_names": "["}, {"features": "raw"}, {"weights_hash": None}]
)
def test_a_damaged_head_is_refused(head_file, change):
    with pytest.raises(UserError, match="metadata is damaged or incomplete"):
        read_head(head_file(**change))


def test_other_files_are_no_heads(tmp_path, head_file):
    with pytest.raises(UserError, match="do not fit together"):
        read_head(head_file(class_names=json.dumps(["cat"])))
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not the linear head"):
        read_head(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_head(tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no linear_head.safetensors"):
        read_head(tmp_path / "empty")


def test_a_head_of_another_backbone_is_refused(head_file, weights):
    check_head(read_head(head_file()), weights, 512, "mine")
    with pytest.raises(UserError, match="trained on other weights than 'mine'"):
        check_head(read_head(head_file(weights_hash="0" * 16)), weights, 512, "mine")
    with pytest.raises(UserError, match="256 channels .* 'mine' has 512"):
        check_head(read_head(head_file(channels=256)), weights, 512, "mine")


def test_photos_are_drawn_evenly_over_classes(tmp_path):
    photos = [Photo(tmp_path / f"{i}", "a" if i < 30 else f"b{i}") for i in range(35)]
    drawn = draw_photos(photos, 6, seed=0)
    assert sorted({photo.class_name for photo in drawn}) == ["a", *(f"b{i}" for i in range(30, 35))]
    assert [photos.index(photo) for photo in drawn] == sorted(photos.index(photo) for photo in drawn)
    assert draw_photos(photos, 6, seed=0) == drawn
    assert draw_photos(photos, 6, seed=1) != drawn
    assert draw_photos(photos, 100, seed=0) == photos


def test_views_are_the_probes_crop_or_the_whole_image():
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    assert view_of(image, 40, 32).shape == (3, 32, 32)
    assert view_of(image, 40, None).shape == (3, 40, 60)
    assert view_of(torch.zeros(3, 20, 2000, dtype=torch.uint8), 40, None).shape == (3, 1, 120)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_is_one_line(tmp_path, workers):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^cannot read image '.*bad.jpg': not an image"):
        list(stream_views([Photo(tmp_path / "bad.jpg", None)], resize=40, crop=32, workers=workers))


def test_overlay_by_hand():
    """Viridis starts at (68, 1, 84) and ends at (253, 231, 37); half of the grey photo's contrast is kept."""
    photo = torch.zeros(3, 1, 2, dtype=torch.uint8)
    photo[:, 0, 1] = 255
    values = torch.tensor([[0.0, 1.0]])
    assert overlay(photo, values, "viridis", 1.0)[:, 0].T.tolist() == [[68, 1, 84], [253, 231, 37]]
    assert overlay(photo, values, "viridis", 0.0)[:, 0].T.tolist() == [[64] * 3, [191] * 3]
    half = overlay(photo, values, "viridis", 0.5)[:, 0].T.tolist()
    assert half == [[66, 32, 74], [222, 211, 114]]


def test_a_page_shows_its_maps(tmp_path):
    photo = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    maps = torch.stack([torch.zeros(40, 60), torch.ones(40, 60)])
    rows = [Row(photo, "photo", maps, ["a", "b"])] * 2
    draw_page(rows, ["A", "B\ntwo"], tmp_path / "p.png", colours="inferno", alpha=1.0)
    page = read_image(tmp_path / "p.png").permute(1, 2, 0)
    # Most pixels of the second column have inferno's lowest colour, of the third its highest.
    third = page.shape[1] // 3
    for column, colour in ((0, (128, 128, 128)), (1, (0, 0, 4)), (2, (252, 255, 164))):
        part = page[:, column * third : (column + 1) * third]
        share = ((part.int() - torch.tensor(colour)).abs().amax(dim=2) <= 2).float().mean()
        assert share > 0.4


def test_long_names_keep_their_end():
    assert shorten("runs/x") == "runs/x"
    assert shorten("a" * 40 + "/pretrain", 20) == "..." + "a" * 8 + "/pretrain"


def test_the_viewer_explains_the_wanted_classes(weights, head_file):
    head = read_head(head_file())
    viewer = Viewer(weights, "mine", head, output_stride=16, device=CPU, precision="fp32")
    view = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    explained = viewer.explain(view, ["predicted", "true", "dog"], "cow")
    assert explained.maps.shape == (3, 64, 80)
    assert (explained.maps.amin(dim=(1, 2)), explained.maps.amax(dim=(1, 2))) == (pytest.approx(0), pytest.approx(1))
    assert [title.split()[0] for title in explained.titles] == [explained.predicted, "cow", "dog"]
    unknown = viewer.explain(view, ["true"], "zebra")
    assert unknown.maps.max() == 0
    assert unknown.titles == ["class not among the head's"]


def test_bf16_maps_are_close_to_fp32(weights):
    view = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    viewers = [Viewer(weights, "mine", None, output_stride=8, device=CPU, precision=p) for p in ("fp32", "bf16")]
    a, b = (viewer.features(view) for viewer in viewers)
    assert not torch.equal(a, b)
    assert float((a - b).norm() / a.norm()) < 0.03
    with pytest.raises(ValueError, match="settle"):
        viewers[0].explain(view, ["predicted"], None)
