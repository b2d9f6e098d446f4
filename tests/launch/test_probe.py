"""polyscene probe: every protocol through the command line, its record, its cache and its refusals."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from polyscene.launch.evaluation import random_weights
from polyscene.runtime.results import read_results
from polyscene.runtime.weights import weights_hash, write_weights

SMALL = ("arch=resnet18", "device=cpu", "resize=40", "crop=32", "k=3", "workers=0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ResNet-18 that is not the random baseline of seed 0."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    write_weights(random_weights("resnet18", 7), path)
    return path


@pytest.fixture
def probe(tmp_path, polyscene, photos, weights):
    """``probe(config, *words)``: run on the miniature photos; the words come last and win."""

    def run(config, *words):
        folders = (f"data.train={photos / 'train'}", f"data.test={photos / 'val'}")
        common = (f"weights={weights}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}")
        return polyscene("probe", f"probe/{config}", *common, *SMALL, *folders, *words)

    return run


@pytest.mark.parametrize(
    ("config", "words", "keys"),
    [
        ("quickstart", [], ["knn_accuracy"]),
        ("linear_folder", ["linear.strengths=[0.01, 1]"], ["linear_accuracy"]),
        ("linear_folder", ["linear.solver=sgd", "linear.epochs=1", "precision=bf16"], ["linear_accuracy"]),
        ("voc_svm", ["data.kind=folder"], ["map_area", "map_interpolated", "map_11_point", "svm_accuracy"]),
    ],
    ids=["knn", "lbfgs", "sgd", "svm"],
)
def test_every_protocol_reports_weights_and_the_random_baseline(tmp_path, probe, config, words, keys):
    code, out, err = probe(config, *words)
    assert code == 0, err
    assert "120/120 tensors matched" in err
    results = read_results(tmp_path / "out" / "results.json")
    assert [metric.key for metric in results.metrics] == keys
    assert set(results.baseline) == {"random"}
    for values in (results.values, results.baseline["random"]):
        assert set(values) == set(keys)
        assert all(0 <= value <= 1 for value in values.values())
    for key in keys:
        assert set(results.per_class[key]) == {"weights", "random"}
        assert list(results.per_class[key]["weights"]) == ["class0", "class1", "class2"]
        # Two test images a class: the mean over classes is the whole.
        assert sum(results.per_class[key]["weights"].values()) / 3 == pytest.approx(results.values[key])
    assert results.chance[keys[0]] == pytest.approx(1 / 3)
    assert (results.protocol["train_images"], results.protocol["test_images"]) == (24, 6)
    assert results.protocol["arch"] == "resnet18"
    assert results.published == []
    assert "initialisation" in out
    assert "per class" in out


def test_random_weights_are_their_own_baseline(tmp_path, probe):
    assert probe("quickstart", "weights=random")[0] == 0
    assert read_results(tmp_path / "out" / "results.json").baseline == {}


def test_features_are_computed_once_for_all_protocols(tmp_path, probe):
    assert "from the cache" not in probe("knn_folder")[2]
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(files) == 4  # two backbones, two splits
    code, _, err = probe("linear_folder", f"out={tmp_path / 'b'}", "linear.strengths=[1]")
    assert code == 0, err
    assert err.count("from the cache") == 4
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
    first = min(files)
    first.write_bytes(first.read_bytes()[:-1])
    code, _, err = probe("knn_folder", f"out={tmp_path / 'c'}")
    assert code == 0, err
    assert (err.count("from the cache"), err.count("damaged")) == (3, 1)
    before, after = (read_results(tmp_path / name / "results.json") for name in ("out", "c"))
    assert (before.values, before.baseline) == (after.values, after.baseline)


def test_the_linear_head_is_written_and_classifies_as_reported(tmp_path, probe, photos, weights):
    from polyscene.launch.probe_data import open_pair
    from polyscene.launch.probe_features import frozen_backbone
    from polyscene.runtime.features import image_features
    from polyscene.runtime.weights import read_weights

    assert probe("linear_folder", "linear.strengths=[0.1]", "baseline=null")[0] == 0
    with safe_open(tmp_path / "out" / "linear_head.safetensors", framework="pt") as file:
        weight, bias, metadata = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
    assert (weight.shape, bias.shape) == ((3, 512), (3,))
    assert json.loads(metadata["class_names"]) == ["class0", "class1", "class2"]
    subject = read_weights(weights)
    assert (metadata["arch"], metadata["weights_hash"]) == ("resnet18", weights_hash(subject))
    assert metadata["features"] == "l2_normalised"
    _, test = open_pair("folder", root=None, train=str(photos / "train"), test=str(photos / "val"))
    backbone, _ = frozen_backbone(subject, torch.device("cpu"))
    features, _ = image_features(backbone, test.images, resize=40, crop=32, device=torch.device("cpu"))
    share = ((features @ weight.T + bias).argmax(1) == test.targets).double().mean().item()
    assert share == pytest.approx(read_results(tmp_path / "out" / "results.json").values["linear_accuracy"])
    # Another protocol in its place takes the head away.
    assert probe("knn_folder", "baseline=null", "overwrite=true")[0] == 0
    assert not (tmp_path / "out" / "linear_head.safetensors").exists()


def test_vissl_chooses_a_cost_for_every_class(tmp_path, probe):
    code, _, err = probe("voc_svm_vissl", "data.kind=folder", "svm.costs=[1, 0.01]", "baseline=null")
    assert code == 0, err
    costs = read_results(tmp_path / "out" / "results.json").protocol["chosen"]["weights"]["costs"]
    assert set(costs) == {"class0", "class1", "class2"}
    assert set(costs.values()) <= {0.01, 1.0}


def test_a_finished_probe_is_not_repeated(tmp_path, probe):
    assert probe("knn_folder", "baseline=null")[0] == 0
    code, out, err = probe("knn_folder", "baseline=null", "cache=null")
    assert (code, out) == (0, "")
    assert "already finished" in err
    code, _, err = probe("knn_folder", "baseline=null", "k=4")
    assert code == 2
    assert "k: 3 -> 4" in err


def test_svm_on_the_built_in_scenes_as_voc2007(tmp_path, probe, polyscene):
    scenes = tmp_path / "scenes"
    assert polyscene("scenes", scenes, "count=20", "size=[48,64]", "workers=1")[0] == 0
    code, _, err = probe("voc_svm", f"data.root={scenes}", "baseline=null", "resize=256", "crop=224")
    assert code == 0, err
    results = read_results(tmp_path / "out" / "results.json")
    left_out = results.protocol["chosen"]["weights"]["classes_left_out"]
    judged = results.per_class["map_area"]["weights"]
    assert judged
    assert not set(judged) & set(left_out)
    assert set(judged) | set(left_out) == set(results.protocol["classes"])
    assert ("are left out of the means" in err) == bool(left_out)
    assert results.values["map_area"] == pytest.approx(sum(judged.values()) / len(judged))
    assert "svm_accuracy" not in results.values
    assert [row.values["map_interpolated"] for row in results.published][:2] == [0.761, 0.813]
    for protocol in ("knn", "linear"):
        code, _, err = probe("voc_svm", f"data.root={scenes}", f"protocol={protocol}", "overwrite=true")
        assert code == 2
        assert "needs one class per image" in err.strip().splitlines()[-1]


def test_multi_label_folder(tmp_path, probe, draw):
    for split, count in (("train", 8), ("val", 4)):
        rows = ["file,labels"]
        for i in range(count):
            draw(tmp_path / split / f"{i}.jpg", i)
            rows.append(f"{i}.jpg,{'day' if i % 2 else 'night'}{' rain' if i < 2 else ''}")
        (tmp_path / split / "labels.csv").write_text("\n".join(rows))
    folders = (f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'val'}")
    code, _, err = probe("voc_svm", "data.kind=folder", *folders)
    assert code == 0, err
    results = read_results(tmp_path / "out" / "results.json")
    # The test images are training images, which one SVM a class tells apart in 512 dimensions.
    assert set(results.per_class["map_area"]["weights"]) == {"day", "night", "rain"}
    assert results.chance == {"map_area": pytest.approx(0.5)}
    code, _, err = probe("voc_svm_vissl", "data.kind=folder", *folders, "overwrite=true")
    assert code == 2
    assert "2 training image(s) with the class 'rain'" in err
    code, _, err = probe("voc_svm", "data.kind=folder", folders[0], "overwrite=true")
    assert code == 2
    assert "one of data.train and data.test has a labels.csv" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["weights=/nowhere"], "/nowhere"),
        (["arch=resnet50"], "is not resnet50"),
        (["k=0"], "k=0 is too small"),
        (["temperature=0"], "temperature=0.0 must be greater than 0"),
        (["workers=-1"], "workers=-1"),
        (["svm.cost=0"], "svm.cost=0.0 must be greater than 0"),
        (["svm.costs=[]"], "svm.costs=[] leaves nothing to try"),
        (["svm.folds=1"], "svm.folds=1"),
        (["linear.holdout=1"], "linear.holdout=1.0"),
        (["linear.strengths=[1, -1]"], "linear.strengths=-1.0"),
        (["protocol=linear", "linear.holdout=0"], "holdout=0.0 must lie between 0 and 1"),
        (["protocol=svm"], "'protocol' must be knn | linear | voc_svm"),
        (["data.train=/nowhere"], "data.train: folder '/nowhere' does not exist"),
        (["data.train=null"], "data.kind=folder needs data.train=FOLDER"),
        (["data.kind=voc2007"], "data.kind=voc2007 needs data.root=FOLDER"),
        (["data.kind=voc2007", "data.root=/nowhere"], "fetches it"),
        (["data.kind=cifar10", "data.root=/nowhere"], "cifar-10-batches-py"),
        (["data.kind=imagenet", "data.root=/nowhere"], "folder '/nowhere' does not exist"),
        (["cache=/proc/features"], "cache=null"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(probe, more, message):
    code, out, err = probe("knn_folder", *more)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


def test_bad_folders_are_one_line(tmp_path, probe, photos):
    data = tmp_path / "data"
    shutil.copytree(photos / "val", data)
    (data / "class2").rename(data / "other")
    code, _, err = probe("knn_folder", f"data.test={data}")
    assert code == 2
    assert "the class 'other' (1 such), which the training images lack" in err
    shutil.rmtree(data / "class0")
    shutil.rmtree(data / "class1")
    code, _, err = probe("knn_folder", f"data.train={data}")
    assert code == 2
    assert "needs at least two sub-folders of images" in err
    broken = tmp_path / "broken"
    shutil.copytree(photos / "val", broken)
    next(broken.rglob("*.jpg")).write_bytes(b"not an image")
    code, _, err = probe("knn_folder", f"data.test={broken}")
    assert code == 2
    assert "cannot read image" in err.strip().splitlines()[-1]
