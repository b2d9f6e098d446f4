"""polyscene cam, end to end."""

import pytest

from polyscene.launch.evaluation import random_weights
from polyscene.runtime.images import read_image
from polyscene.runtime.results import read_results
from polyscene.runtime.weights import write_weights

SMALL = ["resize=40", "crop=32", "workers=0", "device=cpu"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Two weight files of different seeds."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (11, 12):
        write_weights(random_weights("resnet18", seed), folder / f"{seed}.safetensors", "safetensors")
    return folder


@pytest.fixture
def cam(polyscene, photos, backbones, tmp_path):
    """``cam(*words)``: of the first weights on the held-out photos."""

    def run(*words):
        start = ["cam", "cam/quickstart", f"weights={backbones / '11.safetensors'}", f"images={photos / 'val'}"]
        return polyscene(*start, f"out={tmp_path / 'cam'}", *SMALL, *words)

    return run


@pytest.fixture
def head(polyscene, photos, backbones, tmp_path):
    """``head(seed)``: run directory of a linear probe."""

    def make(seed):
        out = tmp_path / f"probe{seed}"
        words = [
            f"weights={backbones / f'{seed}.safetensors'}",
            f"out={out}",
            "baseline=null",
            "linear.strengths=[0.1]",
        ]
        data = [f"data.train={photos / 'train'}", f"data.test={photos / 'val'}", f"cache={tmp_path / 'cache'}"]
        code, _, err = polyscene("probe", "probe/linear_folder", *words, *data, *SMALL)
        assert code == 0, err
        return out

    return make


def test_components_of_weights_and_random_baseline(cam, tmp_path):
    code, out, err = cam("count=5", "rows=3")
    assert code == 0, err
    assert "Where frozen features look: 5 images" in out
    results = read_results(tmp_path / "cam" / "results.json")
    assert (results.metrics, dict(results.values)) == ([], {})
    assert [picture.file for picture in results.pictures] == ["pictures/cam_01.png", "pictures/cam_02.png"]
    maps = results.protocol["maps"]
    assert {entry["shows"] for entry in maps.values()} == {"first principal component"}
    assert 0 < maps["random"]["component_variance"] <= 1
    first = (tmp_path / "cam" / "pictures" / "cam_01.png").read_bytes()
    assert cam("count=5", "rows=3")[2].count("already finished") == 1
    assert cam("count=5", "rows=3", "overwrite=true")[0] == 0
    assert (tmp_path / "cam" / "pictures" / "cam_01.png").read_bytes() == first


def test_class_maps_of_two_backbones(cam, head, backbones, tmp_path):
    compare = [f"compare={backbones / '12.safetensors'}", f"compare_head={head(12)}"]
    code, _, err = cam(f"head={head(11)}", *compare, "count=4", "output_stride=32")
    assert code == 0, err
    assert "warning" not in err
    results = read_results(tmp_path / "cam" / "results.json")
    assert [metric.key for metric in results.metrics] == ["accuracy", "compare_accuracy"]
    assert results.protocol["maps"]["compare"]["shows"] == "class activation"
    # photo | predicted, two backbones | true, two backbones
    picture = read_image(tmp_path / "cam" / "pictures" / "cam_01.png")
    assert picture.shape[2] == pytest.approx(5 * 2.1 * 130, abs=2)


def test_at_stride_32_the_classes_are_those_of_the_probe(cam, head, tmp_path):
    run = head(11)
    code, _, err = cam(f"head={run}", "count=100", "output_stride=32", "baseline=null")
    assert code == 0, err
    accuracy = read_results(tmp_path / "cam" / "results.json").values["accuracy"]
    assert accuracy == pytest.approx(read_results(run / "results.json").values["linear_accuracy"])


def test_chosen_classes_files_and_whole_images(cam, head, photos, tmp_path):
    files = sorted((photos / "val").rglob("*.jpg"))[:2]
    words = ["classes=[class1]", f"images=[{files[0]},{files[1]}]", "crop=null", "baseline=null"]
    code, _, err = cam(f"head={head(11)}", *words)
    assert code == 0, err
    assert "the probe saw resize=40 crop=32" in err
    assert read_results(tmp_path / "cam" / "results.json").protocol["images_shown"] == 2


def test_the_head_of_another_backbone_is_refused(cam, head, tmp_path):
    code, _, err = cam(f"head={head(12)}")
    assert (code, err.count("\n")) == (2, 1)
    assert "trained on other weights" in err
    assert not (tmp_path / "cam").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head=nowhere"], "nowhere: no such file"),
        (["classes=[cat]"], "classes needs the linear head"),
        (["images=nowhere"], "does not exist"),
        (["images=[a.jpg]"], "'a.jpg' is not a file"),
        (["images=[]"], "names no image"),
        (["count=0"], "count=0 is too small"),
        (["crop=8"], "crop=8 is too small"),
        (["alpha=2"], "alpha=2.0 must lie between"),
        (["compare=nowhere"], "no such file"),
        (["compare_head=x", "baseline=null"], "compare_head needs a second backbone"),
        (["output_stride=4"], "output_stride"),
    ],
)
def test_bad_input_is_one_line(cam, tmp_path, words, message):
    code, _, err = cam(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "cam").exists()


def test_images_without_one_or_unreadable(cam, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = cam(f"images={tmp_path / 'empty'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "no images in" in err
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    code, _, err = cam(f"images={tmp_path / 'bad.jpg'}", "baseline=null")
    assert code == 2
    assert "cannot read image" in err.splitlines()[-1]
    assert not (tmp_path / "cam" / "results.json").exists()
