"""What image-level tasks say: in evaluation, in predictions for photos, in the table and below the pictures."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.data.transforms import pad_image, stretch_image
from polyscene.downstream.multitask.evaluation import class_scores, measure
from polyscene.downstream.multitask.evaluation import predict as predict_batch
from polyscene.downstream.multitask.image_labels import image_prediction, label_of, predicts_classes, write_label_table
from polyscene.downstream.multitask.losses import depth_l1
from polyscene.downstream.multitask.metric_labels import metric_of
from polyscene.downstream.multitask.models.build import ModelOptions, build_model
from polyscene.downstream.multitask.overview import image_key
from polyscene.downstream.multitask.prediction import predict, predict_files
from polyscene.downstream.multitask.tasks import Target, TargetGeometry, TaskSpec, depth, grey, image_class
from polyscene.runtime.distributed import World
from polyscene.runtime.features import normalise

CPU = torch.device("cpu")
LABELS = {"0": "room", "1": "street", "2": None, "3": "street", "4": "room", "5": "room", "6": "street"}
SIZES = ((33, 47), (40, 64), (33, 47))


def label(root, name):
    return LABELS[name]


def first(output):
    return output[:, 0].clamp(min=0)


def brightness():
    """An image-level task of numbers."""
    return TaskSpec(
        name="brightness",
        title="Brightness",
        channels=1,
        loss=depth_l1,
        make_metric=depth.task().make_metric,
        metric="rmse",
        higher_is_better=False,
        unit="%",
        geometry=TargetGeometry(),
        activate=first,
        colour=grey,
        read=half,
        image_level=True,
    )


def half(root, name):
    return Target(torch.full((1, 1, 1), 0.5), torch.ones(1, 1, dtype=torch.bool))


SCENE = image_class.task("scene", "Scene", ("room", "street"), label)
SPECS = {"depth": dataclasses.replace(depth.task(), read=None), "scene": SCENE, "brightness": brightness()}


class Metres:
    """Depth of every image: its number and one metre."""

    def missing(self, name):
        return []

    def read(self, name, size):
        return Target(torch.full((1, *size), 1.0 + int(name)), torch.ones(size, dtype=torch.bool))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven images of two sizes; one has no class."""
    root = tmp_path_factory.mktemp("images")
    for name in LABELS:
        pixels = np.random.default_rng(int(name)).integers(0, 256, (*SIZES[int(name) % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    found = DenseImages("made", root, "val", tuple(LABELS), "{name}.png", {}, {})
    found = dataclasses.replace(found, tasks={"depth": SPECS["depth"]}, sources={"depth": Metres()})
    return found.with_task(SCENE).with_task(SPECS["brightness"])


@pytest.fixture(scope="module")
def model(weights, disturb):
    options = ModelOptions("multi_task", head_width=8)
    channels = {task: spec.channels for task, spec in SPECS.items()}
    model = build_model(options, weights("resnet10t"), channels, image_level=("scene", "brightness"))
    disturb(model, "scene")
    with torch.no_grad():
        model.heads.tasks["scene"].prediction.weight.mul_(20)
        model.heads.tasks["brightness"].prediction.bias.fill_(0.5)
    return model.eval()


@torch.no_grad()
def logits(model, image):
    """Of one photo, straight from the encoder."""
    features = model.encoder(normalise(image[None]))[-1].flatten(2).mean(2)
    head = model.heads.tasks["scene"].prediction
    return F.linear(features, head.weight.flatten(1), head.bias)[0]


@pytest.mark.parametrize("options", [{"multiple": 16}, {"stretch": (32, 48)}])
def test_scores_are_those_of_single_images(model, photos, options):
    found = measure(
        model, photos, tasks=["scene", "depth"], device=CPU, world=World(0, 1, CPU), batch_size=3, **options
    )
    right, judged = {"room": [], "street": []}, 0
    for index, name in enumerate(photos.names):
        if LABELS[name] is None:
            continue
        photo = photos.read(index).image
        shown = stretch_image(photo, options["stretch"]) if "stretch" in options else pad_image(photo, multiple=16)
        guess = SCENE.classes[int(logits(model, shown).argmax())]
        right[LABELS[name]].append(guess == LABELS[name])
        judged += 1
    scores = found["scene"].compute()
    assert judged == 6
    assert scores["accuracy"] == pytest.approx(sum(map(sum, right.values())) / judged)
    shares = {name: sum(hits) / len(hits) for name, hits in right.items()}
    assert scores["mean_class_accuracy"] == pytest.approx(sum(shares.values()) / 2)
    assert class_scores(found, photos.tasks) == {"scene": pytest.approx(shares)}
    assert found["depth"].compute()["rmse"] > 0


def test_processes_share_the_images(model, photos):
    """Two halves with their states put together are the whole."""
    states = []

    class Rank(World):
        def gather_objects(self, mine):
            states.append(mine)
            return [*states]

    options = {"tasks": ["scene"], "device": CPU, "batch_size": 2}
    whole = measure(model, photos, world=World(0, 1, CPU), **options)["scene"]
    for rank in range(2):
        joint = measure(model, photos, world=Rank(rank, 2, CPU), **options)["scene"]
    assert torch.equal(joint.sums["confusion"], whole.sums["confusion"])
    assert states[0]["confusion"].sum() + states[1]["confusion"].sum() == 6


@pytest.mark.parametrize("stretch", [None, (32, 48)])
def test_predictions_of_a_batch_are_one_class_an_image(model, photos, stretch):
    pair = [photos.read(index).image for index in (0, 2)]
    for found in predict_batch(model, pair, SPECS, CPU, stretch=stretch):
        assert {task: tuple(values.shape) for task, values in found.items()} == {
            "depth": (33, 47),
            "scene": (1, 1),
            "brightness": (1, 1),
        }
        assert found["scene"].dtype == torch.int64


def test_predictions_for_photos_are_probabilities(model, photos):
    photo = photos.read(1).image
    expected = logits(model, pad_image(photo, multiple=16)).softmax(0)
    found = predict(model, photo, SPECS)
    torch.testing.assert_close(found["scene"], expected)
    assert found["depth"].shape == (40, 64)
    reduced = predict(model, photo, SPECS, longest=32)
    assert (reduced["scene"].shape, reduced["depth"].shape) == ((2,), (40, 64))
    assert not torch.equal(reduced["scene"], found["scene"])


def test_files_for_photos(model, photos, tmp_path):
    paths = [photos.image_path(index) for index in range(3)]
    files = predict_files(model, paths, SPECS, tmp_path, arrays=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.csv",
        *(f"{i}{end}" for i in range(3) for end in ("_depth.png", "_overview.png", ".npz")),
    }
    assert files.table == tmp_path / "predictions.csv"
    rows = list(csv.DictReader(files.table.open()))
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    for path, row in zip(paths, rows):
        with np.load(files.arrays[path]) as arrays:
            assert arrays["scene"].shape == (2,)
            assert row["scene"] == SCENE.classes[arrays["scene"].argmax()]
            assert float(row["scene_probability"]) == pytest.approx(float(arrays["scene"].max()), abs=1e-4)
            assert row["brightness"] == f"{100 * arrays['brightness'][0]:.4g}%"
    dense = predict_files(model, paths[:1], {"depth": SPECS["depth"]}, tmp_path / "dense")
    assert dense.table is None
    assert not (tmp_path / "dense" / "predictions.csv").exists()


def test_captions_stand_below_the_photo(model, photos, tmp_path):
    path = photos.image_path(1)  # 40 x 64, drawn as 250 x 400
    sheets = {}
    for tasks in (("depth",), ("depth", "scene")):
        out = tmp_path / "_".join(tasks)
        files = predict_files(model, [path], {task: SPECS[task] for task in tasks}, out)
        sheets[tasks] = np.asarray(Image.open(files.overviews[path]))
    plain, captioned = sheets.values()
    assert captioned.shape == plain.shape  # no panel more: the depth already has lines below
    changed = (plain != captioned).any(axis=2).nonzero()
    assert changed[0].min() >= 24 + 250
    assert changed[1].max() < 8 + 400


def test_words():
    assert label_of(SCENE, torch.tensor([0.1, 0.9])) == ("street", pytest.approx(0.9))
    assert label_of(SCENE, torch.tensor([[1]])) == ("street", None)
    assert label_of(SPECS["brightness"], torch.tensor([0.25])) == ("25%", None)
    assert label_of(dataclasses.replace(SCENE, classes=()), torch.tensor([[1]])) == ("class 1", None)
    assert [predicts_classes(SPECS[task]) for task in ("scene", "brightness")] == [True, False]
    street = tuple(SCENE.picture(torch.tensor([[1]]))[0, 0].tolist())
    assert image_key(SCENE, torch.tensor([0.1, 0.9])) == ("Scene: street 90%", street)
    assert image_key(SCENE, torch.tensor([[1]])) == ("Scene: street", street)
    assert image_key(SPECS["brightness"], torch.tensor([0.25])).text == "Brightness: 25%"
    output = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(image_prediction(SCENE, output).sum(), torch.tensor(1.0))


def test_the_table_quotes_what_must_be_quoted(tmp_path):
    task = image_class.task("scene", "Scene", ("a, b", "c"), label)
    write_label_table(tmp_path / "t.csv", {"scene": task}, [("one, two.jpg", {"scene": torch.tensor([0.75, 0.25])})])
    (row,) = csv.DictReader((tmp_path / "t.csv").open())
    assert row == {"image": "one, two.jpg", "scene": "a, b", "scene_probability": "0.7500"}


def test_metrics_have_names():
    found = [metric_of(SCENE, key) for key in ("accuracy", "mean_class_accuracy")]
    assert [(m.label, m.unit, m.better) for m in found] == [
        ("Scene: accuracy", "%", "higher"),
        ("Scene: mean class accuracy", "%", "higher"),
    ]
