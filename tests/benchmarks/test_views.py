"""The benchmark of the views: the published pipeline draws what ours draws, and times are added up as they should."""

import itertools
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import ks_2samp

from polyscene.runtime.features import IMAGENET_MEAN, IMAGENET_STD
from polyscene.runtime.images import read_image
from polyscene.ssl.sources import open_source
from polyscene.ssl.views import colour, render
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.render import render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

QUERY, ANCHOR, SMALL = 0, 1, 2
LEAST_CHANCE = 1e-3  # that two samples of one distribution differ as much; seeds are fixed


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("views")


@pytest.fixture
def published(benchmark):
    return sys.modules["published_views"]


@pytest.fixture
def ratios(benchmark):
    return sys.modules["ratios"]


@pytest.fixture
def work(benchmark):
    return sys.modules["view_work"]


@pytest.fixture(autouse=True)
def process_as_before(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: True)  # cannot be undone; later tests measure memory
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.fixture(scope="module")
def photos(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    benchmark.write_photos(folder, 4, seed=0, size=(96, 128))
    return folder


def small_spec(augmentation="mix", **extra):
    return ViewSpec(CropGroup(2, 24, (0.2, 1.0)), CropGroup(4, 16, (0.05, 0.14)), augmentation=augmentation, **extra)


def alike(one, other):
    return ks_2samp(one, other).pvalue > LEAST_CHANCE


# Photos


def test_photos_are_jpeg_files_as_large_as_photographs(benchmark, tmp_path):
    benchmark.write_photos(tmp_path, 5, seed=0)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"{number:05d}.jpg" for number in range(5)]
    for number, file in enumerate(files):
        assert 50_000 < file.stat().st_size < 250_000
        with Image.open(file) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.size == ((480, 640) if number % 4 == 0 else (640, 480))
            assert np.asarray(image).std() > 20


def test_photos_depend_on_seed_and_number_only(benchmark, photos, tmp_path):
    for name, count, seed in (("same", 2, 0), ("other", 2, 1)):
        benchmark.write_photos(tmp_path / name, count, seed=seed, size=(96, 128))
    first = [(photos / f"{number:05d}.jpg").read_bytes() for number in range(4)]
    assert [file.read_bytes() for file in sorted((tmp_path / "same").iterdir())] == first[:2]
    assert (tmp_path / "other" / "00000.jpg").read_bytes() != first[0]
    assert len(set(first)) == 4


# Ratios


def test_spread_by_hand(ratios):
    assert ratios.spread([4.0, 1.0, 2.0, 5.0, 3.0]) == {"median": 3.0, "quartiles": [2.0, 4.0]}
    assert ratios.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "quartiles": [1.5, 2.5]}
    assert ratios.spread([4.0, 1.0]) == {"median": 2.5, "quartiles": [1.0, 4.0]}
    assert ratios.spread([1.23456]) == {"median": 1.235, "quartiles": [1.235, 1.235]}


def test_each_begins_a_round(ratios):
    assert [ratios.turned("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert ratios.turned({"x": 1, "y": 2}, 1) == ["y", "x"]


# The published pipeline


@pytest.mark.parametrize("augmentation", ["standard", "mix"])
def test_recipe_and_shapes(work, published, photos, augmentation):
    spec = work.view_spec(augmentation)
    assert (spec.constraint, spec.min_overlap, spec.max_iou, spec.augmentation) == ("overlap", 0.1, None, augmentation)
    published.seed_everything(0)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    for path in sorted(photos.iterdir()):
        views = published.PublishedViews(spec)(path)
        assert [tuple(view.shape) for view in views] == [(3, 160, 160)] * 2 + [(3, 96, 96)] * 4
        for view in views:
            levels = (view * std + mean) * 255
            assert view.dtype == torch.float32
            assert torch.allclose(levels, levels.round().clamp(0, 255), atol=1e-3)


def test_published_views_follow_the_seed(published, photos):
    def made(seed):
        published.seed_everything(seed)
        return torch.cat([view.flatten() for view in published.PublishedViews(small_spec())(photos / "00001.jpg")])

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))


def published_boxes(published, monkeypatch, spec, size, number):
    """(number, views, 4) top, left, height, width of crops as they are cut out."""
    boxes = []
    monkeypatch.setattr(published.F, "resized_crop", lambda image, *box_and_side: boxes.append(box_and_side[:4]))
    published.seed_everything(0)
    make, image = published.PublishedViews(spec), Image.new("RGB", size[::-1])
    for _ in range(number):
        make._crops(image)
    return np.array(boxes, np.int64).reshape(number, spec.num_views, 4)


def overlap_share(boxes, view):
    """Of the view's area, what lies in the anchor."""
    low = np.maximum(boxes[:, view, :2], boxes[:, ANCHOR, :2])
    high = np.minimum(boxes[:, view, :2] + boxes[:, view, 2:], boxes[:, ANCHOR, :2] + boxes[:, ANCHOR, 2:])
    return np.maximum(high - low, 0).prod(-1) / boxes[:, view, 2:].prod(-1)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (300, 900)])
def test_published_crops_are_distributed_as_ours(published, monkeypatch, height, width):
    spec, number = small_spec(), 2000
    theirs = published_boxes(published, monkeypatch, spec, (height, width), number)
    sizes = np.tile([[height, width]], (number, 1))
    params = sample_views(0, 0, np.arange(number), sizes, spec)
    ours, fallback = params.boxes.numpy(), params.fallback.numpy()
    for boxes in (theirs, ours):
        assert (boxes >= 0).all()
        assert (boxes[..., :2] + boxes[..., 2:] <= [height, width]).all()
    for view in range(spec.num_views):
        group = spec.large if view < spec.large.count else spec.small
        shares = [boxes[:, view, 2:].prod(-1) / (height * width) for boxes in (theirs, ours)]
        for share in shares:
            assert group.scale[0] * 0.98 < share.min()
            assert share.max() < group.scale[1] * 1.02
        assert alike(*shares)
        assert alike(*(boxes[:, view, 3] / boxes[:, view, 2] for boxes in (theirs, ours)))
        for axis in (0, 1):
            assert alike(*(boxes[:, view, axis] + boxes[:, view, 2 + axis] / 2 for boxes in (theirs, ours)))
        assert alike(overlap_share(theirs, view), overlap_share(ours, view))
        if group is spec.small:  # the threshold is of the area before rounding; ours tells when ten tries were in vain
            missed = overlap_share(theirs, view) < 0.98 * spec.min_overlap
            assert missed.mean() <= fallback[:, view].mean() + 0.01


def test_small_crops_that_cannot_overlap_are_not_constrained(published, monkeypatch):
    spec = small_spec(min_overlap=1.0)
    theirs = published_boxes(published, monkeypatch, spec, (400, 400), 500)
    params = sample_views(0, 0, np.arange(500), np.full((500, 2), 400), spec)
    ours = params.boxes.numpy()
    met = [np.mean([overlap_share(boxes, v) > 0.98 for v in range(2, 6)]) for boxes in (theirs, ours)]
    assert 0.5 < met[0] < 1
    assert met[0] == pytest.approx(met[1], abs=0.03)


def traits(views):
    """Of (n, 3, size, size) normalised views: brightness, contrast, colourfulness, sharpness, darker side."""
    levels = views * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    levels = (255 * levels).round()  # as they were, so that grey views are exactly grey
    grey, half = levels.mean(1), levels.shape[-1] // 2
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "colourfulness": (levels.amax(1) - levels.amin(1)).mean((1, 2)),
        "sharpness": grey.diff(dim=-1).abs().mean((1, 2)),
        "darker side": grey[..., :half].mean((1, 2)) - grey[..., half:].mean((1, 2)),
    }


@pytest.mark.parametrize("augmentation", ["standard", "mix"])
def test_published_pixels_are_distributed_as_ours(published, photos, augmentation):
    spec, number, path = small_spec(augmentation), 300, photos / "00001.jpg"
    published.seed_everything(0)
    make, image = published.PublishedViews(spec), read_image(path)
    theirs = [torch.stack(views) for views in zip(*(make(path) for _ in range(number)))]
    params = sample_views(0, 0, np.arange(number), [image.shape[1:]] * number, spec)
    ours = [view for group in render_views([image] * number, params, spec, "cpu") for view in group.unbind(1)]
    for view in (QUERY, ANCHOR, SMALL):
        found, expected = traits(theirs[view]), traits(ours[view])
        for name in found:
            assert alike(found[name], expected[name]), (view, name)
        greys = [(traits(views[view])["colourfulness"] == 0).float().mean() for views in (theirs, ours)]
        least = 0.05 if augmentation == "mix" and view != ANCHOR else 0.14
        assert least < min(greys)
        assert max(greys) < 0.27


def test_the_mix_differs_from_standard(published, photos):
    """So that the test above can fail: AutoAugment shows in the queries, not in the anchor."""
    views = {}
    for seed, augmentation in enumerate(("standard", "mix")):
        published.seed_everything(seed)
        make = published.PublishedViews(small_spec(augmentation))
        views[augmentation] = [torch.stack(x) for x in zip(*(make(photos / "00001.jpg") for _ in range(200)))]
    for view, same in ((QUERY, False), (ANCHOR, True), (SMALL, False)):
        found = [traits(each[view]) for each in views.values()]
        assert all(alike(found[0][name], found[1][name]) for name in found[0]) == same


def test_data_set_repeats_its_files(published, photos):
    paths = sorted(photos.iterdir())
    data = published.PublishedDataset(paths, 10, small_spec())
    seen = []
    data.make = lambda path: seen.append(path) or []
    stamps = [data[index][1] for index in range(len(data))]
    assert seen == [*paths, *paths, *paths[:2]]
    assert stamps == sorted(stamps)


# Times


def test_worker_time_is_that_between_batches(work):
    setting = work.Setting(batch_size=2, batches=3, rounds=1, seed=0, cache_side=96)
    stamps = [5.0, 9.0, 10.0, 12.0, 13.0, 16.0]  # warm-up, warm-up, three batches of two
    assert work._seconds_an_image(stamps, setting) == pytest.approx(1.0)


def test_a_turn_makes_its_batches_and_no_more(work, monkeypatch):
    setting = work.Setting(batch_size=2, batches=3, rounds=1, seed=0, cache_side=96)
    made, clocks = itertools.count(), {"process_time": iter([1.0, 4.0]), "perf_counter": iter([10.0, 22.0])}
    for clock, times in clocks.items():
        monkeypatch.setattr(work.time, clock, times.__next__)
    assert work.timed((next(made) for _ in range(9)), setting) == (0.5, 2.0)
    assert next(made) == 3


def test_laps_add_up(work, monkeypatch):
    monkeypatch.setattr(work.time, "process_time", iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0]).__next__)
    stages = work.Stages()
    stages.start()
    stages.lap("a")
    call = stages.timed("inner", lambda x: x + 1, "outer")
    stages.lap("a")
    assert call(1) == 2
    assert stages.seconds == {"a": 6.0, "outer": 1.0, "inner": 2.0}


def test_stages_of_both_pipelines(work, photos):
    source = open_source("folder", photos, seed=0)
    setting = work.Setting(batch_size=2, batches=1, rounds=1, seed=0, cache_side=96)
    originals = render.resize_crop, colour.apply
    shared = {"crop and resize", "colour", "normalise and store"}
    ours = work.our_stages(source, "mix", setting)
    assert (render.resize_crop, colour.apply) == originals
    assert set(ours) == {"read", "decode", "gather the batch", "draw parameters", *shared}
    theirs = work.published_stages(source, "mix", setting)
    assert set(theirs) == {"read and decode", *shared}
    assert min(*ours.values(), *theirs.values()) >= 0


def test_ratios_are_those_within_rounds(benchmark):
    rounds = {"published, mix": [0.010, 0.040, 0.030], "ours, mix": [0.002, 0.020, 0.003]}
    found = benchmark._compared(rounds, lambda name: ["published, mix"])
    assert "ratio_to" not in found["published, mix"]
    assert found["published, mix"]["ms_an_image"] == 30.0
    ours = found["ours, mix"]
    assert (ours["ms_an_image"], ours["images_per_second"], ours["ms_of_rounds"]) == (3.0, 333.3, [2.0, 20.0, 3.0])
    assert ours["ratio_to"] == {"published, mix": {"median": 5.0, "quartiles": [3.5, 7.5]}}


def test_the_device_has_a_table(benchmark, capsys):
    results = {
        **{key: {} for key in ("worker", "whole_path", "whole_path_wall", "stages_ms")},
        "device": {
            "batch_size": 256,
            "images_per_second": {"standard": 5000.0, "mix": 4900.0},
            "ms_a_batch": {"standard": 51.2, "mix": 52.2},
            "launch_ms_a_batch": {"standard": 7.0, "mix": 9.0},
            "mix_over_standard": {"median": 1.02, "quartiles": [1.01, 1.03]},
        },
    }
    Console(width=110).print(benchmark.tables(results)[-1])
    shown = capsys.readouterr().out
    assert "batches of 256" in shown
    assert "1.02x (1.01-1.03)" in shown


def test_what_is_printed_and_written(benchmark, photos, run_main):
    words = ["--images", str(photos), "--batch-size", "2", "--batches", "1", "--rounds", "1"]
    shown, found = run_main(benchmark, words, {"gpu", "load_before", "bounds"})
    for title in ("a worker process", "the whole path on one core", "by stages"):
        assert title in shown
    assert (found["seed"], found["threads"], found["rounds"], found["batch_size"]) == (0, 1, 1, 2)
    assert (found["images"], found["image_count"], found["mean_pixels"]) == (photos.name, 4, 96 * 128)
    assert found["cache_side"] == 96  # nothing is reduced
    assert "pillow" in found["environment"]
    references = {"published, standard", "published, mix"}
    ours = {"ours, files", "ours, cache memory", "ours, cache device"}
    assert set(found["worker"]) == references | ours
    for name in ours:
        assert set(found["worker"][name]["ratio_to"]) == references
    for kind in ("standard", "mix"):
        for name in (f"ours, {kind}", f"ours, {kind}, decoded"):
            assert list(found["whole_path"][name]["ratio_to"]) == [f"published, {kind}"]
    for part in ("worker", "whole_path", "whole_path_wall"):
        assert all(len(each["ms_of_rounds"]) == 1 and each["ms_an_image"] > 0 for each in found[part].values())


def test_too_few_photos_are_refused(benchmark, photos, tmp_path):
    with pytest.raises(SystemExit, match="4 images, fewer than a batch of 5"):
        benchmark.main(["--images", str(photos), "--batch-size", "5", "--out", str(tmp_path / "x.json")])
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--batches", "-1"], "--batches -1: give 1 or more"),
        (["--images", "/nowhere"], "--images /nowhere: no such folder"),
        (["--preset", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options_are_refused(benchmark, refusal, words, message):
    assert message in refusal(benchmark.parse, words)
