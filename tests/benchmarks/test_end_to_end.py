"""The end-to-end benchmark: ready views and image files train alike, and fractions are those within rounds."""

import argparse
import json
from contextlib import ExitStack

import pytest
import torch

from polyscene.runtime.distributed import World
from polyscene.ssl.sources import open_source


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("end_to_end")


@pytest.fixture(autouse=True)
def memory_is_given_back(benchmark, monkeypatch):
    # Cannot be undone; later tests measure memory.
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(benchmark.loop, "keep_freed_memory", lambda: True)


@pytest.fixture(scope="module")
def photos(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    benchmark.write_photos(folder, 8, seed=0, size=(96, 128))
    return folder


@pytest.fixture
def case(benchmark):
    feeds = (benchmark.Feed("none", 0), benchmark.Feed("memory", 0, "standard"), benchmark.Feed("device", 0))
    return benchmark.Case("resnet10t", (32, 16), 4, 64, "fp32", feeds, steps=2)


@pytest.fixture
def contest(benchmark, case, photos, tmp_path):
    source, world = open_source("folder", photos, seed=0), World(rank=0, size=1, device=torch.device("cpu"))
    with ExitStack() as stack:
        supplies = benchmark.open_supplies(case, source, world, 96, stack)
        yield benchmark.Contest(case, source, supplies, world, seed=0, compile=False, folder=tmp_path)


@pytest.fixture
def steps(contest, monkeypatch):
    """Views of all steps that the contest makes."""
    made, original = [], contest.runner.step

    def step(views, **rest):
        made.append(views)
        return original(views, **rest)

    monkeypatch.setattr(contest.runner, "step", step)
    return made


def test_all_contestants_train_the_same_number_of_steps(contest, steps):
    weights = contest.state.model.query.parameters
    for feed in (None, *contest.case.feeds):
        before = torch.cat([w.detach().flatten() for w in weights()])
        steps.clear()
        rate, wait = contest.turn(feed)
        assert len(steps) == 2 * contest.case.steps
        assert rate > 0
        assert 0 <= wait <= 100
        assert not torch.equal(torch.cat([w.detach().flatten() for w in weights()]), before)
        for views in steps:
            assert [tuple(group.shape) for group in views] == [(4, 2, 3, 32, 32), (4, 4, 3, 16, 16)]


def test_ready_views_are_those_of_the_files(contest, steps):
    contest.turn(contest.case.feeds[0])
    for ready, views in zip(contest.ready, steps):
        assert all(torch.equal(one, other) for one, other in zip(ready, views, strict=True))
    assert not torch.equal(contest.ready[0][0], contest.ready[1][0])


def test_decoded_images_give_the_same_views(contest, steps):
    """So that all feeds with one augmentation have the same work."""
    contest.turn(contest.case.feeds[0])
    files = list(steps)
    steps.clear()
    contest.turn(contest.case.feeds[2])
    for one, other in zip(files, steps, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_is_saved(contest):
    contest.turn(contest.case.feeds[0])
    assert not [path for path in contest.run.path.rglob("*") if path.suffix in {".pt", ".pth", ".ckpt"}]


def test_only_the_second_window_of_ready_views_counts(benchmark, contest, monkeypatch):
    monkeypatch.setattr(contest.runner, "step", lambda *a, **b: argparse.Namespace(means=torch.zeros(2)))
    monkeypatch.setattr(benchmark.time, "perf_counter", iter([0.0, 100.0, 200.0, 202.0]).__next__)
    assert contest.turn(None) == (contest.case.steps * contest.case.batch_size / 2.0, 0.0)


def test_only_the_last_window_of_files_counts(benchmark, contest, monkeypatch):
    def train(runner, state, batches, views, schedule, run):
        assert (state.step, schedule.end_step, schedule.log_every) == (0, 4, 2)
        assert views.augmentation == "standard"
        lines = [{"images_per_second": 1.0, "data_wait_percent": 99.0}, {"images_per_second": 8.0}]
        lines[-1]["data_wait_percent"] = 25.0
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(benchmark, "train", train)
    contest.state.step = 7
    assert contest.turn(contest.case.feeds[1]) == (8.0, 25.0)


class Scripted:
    """A contest whose turns are known beforehand."""

    def __init__(self, case, turns):
        self.case, self.turns, self.order = case, {feed: iter(found) for feed, found in turns.items()}, []

    def turn(self, feed):
        self.order.append(feed)
        return next(self.turns[feed])


def test_fraction_is_a_ratio_within_a_round(benchmark, case):
    files, memory, device = case.feeds
    turns = {
        None: [(10.0, 0.0), (100.0, 0.0), (20.0, 0.0)],
        files: [(9.0, 1.0), (40.0, 3.0), (20.0, 2.0)],
        memory: [(10.0, 0.0), (100.0, 0.0), (20.0, 0.0)],
        device: [(5.0, 50.0), (50.0, 50.0), (10.0, 50.0)],
    }
    contest, lines = Scripted(case, turns), []
    found = benchmark.measure(contest, 3, lines.append)
    assert contest.order == [
        *(None, files, memory, device),
        *(files, memory, device, None),
        *(memory, device, None, files),
    ]
    assert list(found) == ["ready", "files, 0 workers", "cache memory, 0 workers, standard", "cache device, 0 workers"]
    assert found["ready"]["fraction"] == {"median": 1.0, "quartiles": [1.0, 1.0]}
    # Of 0.9, 0.4 and 1; the ratio of the median rates would be 1.
    assert found["files, 0 workers"] == {
        "images_per_second": 20.0,
        "fraction": {"median": 0.9, "quartiles": [0.65, 0.95]},
        "data_wait_percent": 2.0,
        "images_per_second_of_rounds": [9.0, 40.0, 20.0],
    }
    assert found["cache device, 0 workers"]["fraction"]["median"] == 0.5
    assert len(lines) == 12
    assert lines[0] == "round 1 of 3, ready: 10.0 images/s"


def test_options_replace_the_numbers_of_a_case(benchmark):
    words = ["--cases", "r18_96_48", "--workers", "3", "0", "--batch-size", "8", "--steps", "5"]
    case = benchmark.chosen_case("r18_96_48", benchmark.parse(words))
    assert (case.batch_size, case.steps, case.sizes) == (8, 5, (96, 48))
    assert [str(feed) for feed in case.feeds] == [
        *("files, 3 workers", "files, 0 workers"),
        *("cache memory, 1 workers", "cache device, 1 workers"),
    ]
    assert benchmark.chosen_case("r18_160_96", benchmark.parse([])) == benchmark.CASES["cpu"]["r18_160_96"]


def test_photos_are_made_where_none_are_given(benchmark, case, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "write_photos", lambda folder, count, *, seed: asked.append((folder, count, seed)))
    with ExitStack() as stack:
        first = benchmark.photo_folder(benchmark.parse(["--seed", "5"]), [case], stack)
        second = benchmark.photo_folder(benchmark.parse(["--photos", "7"]), [case], stack)
        assert asked == [(first, 16, 5), (second, 7, 0)]
        assert first.is_dir()
    assert not first.exists()


def test_what_is_printed_and_written(benchmark, case, photos, run_main, monkeypatch):
    monkeypatch.setitem(benchmark.CASES["cpu"], "r18_96_48", case)
    words = ["--cases", "r18_96_48", "--images", str(photos), "--rounds", "1", "--steps", "1", "--workers", "1"]
    shown, found = run_main(benchmark, [*words, "--threads", "1"], {"gpu", "load_before", "compile"})
    assert "r18_96_48: resnet10t, 4 images, 2 x 32 + 4 x 16 pixels" in shown
    assert "files, 1 workers" in shown
    assert (found["seed"], found["threads"], found["rounds"], found["bound"]) == (0, 1, 1, 0.9)
    assert (found["images"], found["image_count"], found["mean_pixels"]) == (photos.name, 8, 96 * 128)
    assert "pillow" in found["environment"]
    (written,) = found["cases"].values()
    assert (written["arch"], written["batch_size"], written["steps"]) == ("resnet10t", 4, 1)
    feeds = written["feeds"]
    assert list(feeds) == [
        "ready",
        "files, 1 workers",
        "cache memory, 0 workers, standard",
        "cache device, 0 workers",
    ]
    ready = feeds["ready"]["images_per_second_of_rounds"][0]
    for each in feeds.values():
        (rate,) = each["images_per_second_of_rounds"]
        assert each["fraction"]["median"] == pytest.approx(rate / ready, abs=2e-3)


def test_too_few_photos_are_refused(benchmark, case, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark.CASES["cpu"], "r18_96_48", case)
    words = ["--cases", "r18_96_48", "--images", str(photos), "--batch-size", "9", "--out", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit, match="8 images, fewer than a batch of 9"):
        benchmark.main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--threads", "0"], "--threads 0: give 1 or more"),
        (["--batch-size", "1"], "--batch-size 1: give 2 or more"),
        (["--photos", "0"], "--photos 0: give 1 or more"),
        (["--cases", "r50_160_96"], "--cases r50_160_96: preset cpu has r18_160_96, r18_96_48"),
        (["--cases", "vgg"], "invalid choice: 'vgg'"),
        (["--images", "/nowhere"], "--images /nowhere: no such folder"),
    ],
)
def test_wrong_options_are_refused(benchmark, refusal, words, message):
    assert message in refusal(benchmark.parse, words)
