"""``data.cache``: where decoded images are kept changes nothing but speed, and resuming is as exact as ever."""

import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from polyscene.runtime.checkpoint import list_checkpoints, read_checkpoint

SIDE = "data.cache_side=24"  # the images are 48 x 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "run"


@pytest.fixture
def reference(trained, words, polyscene):
    """The run with images in memory, made once, without a worker process."""
    if not trained.exists():
        code, _, err = polyscene(*words(trained, SIDE, "data.cache=memory"))
        assert code == 0, err
    return trained


def assert_same_training(one, other):
    states = [read_checkpoint(list_checkpoints(out / "checkpoints")[-1]) for out in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    assert (one / "backbone.safetensors").read_bytes() == (other / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize(("kind", "workers"), [("memory", 2), ("disk", 0), ("disk", 2), ("device", 0), ("device", 2)])
def test_all_caches_train_the_same_model(reference, tmp_path, words, polyscene, kind, workers):
    out = tmp_path / "run"
    code, _, err = polyscene(*words(out, SIDE, f"data.cache={kind}", f"data.workers={workers}"))
    assert code == 0, err
    assert "packing 24 images, shorter sides reduced to 24 pixels" in (out / "log.txt").read_text()
    assert (tmp_path / "packed_images").exists() == (kind == "disk"), "beside the run, for those that follow"
    assert_same_training(reference, out)


def test_a_killed_run_goes_on_from_any_cache_of_the_same_side(reference, tmp_path, words, start, polyscene):
    out = tmp_path / "run"
    kept = f"data.cache_dir={tmp_path / 'kept'}"
    process = start(*words(out, SIDE, "data.cache=disk", "data.workers=1", kept))
    checkpoints = out / "checkpoints"
    while len(list(checkpoints.glob("step-*.pt"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "backbone.safetensors").exists(), "the run ended before it could be killed"
    code, _, err = polyscene(*words(out, SIDE, "data.cache=device", kept))
    assert code == 0, err
    assert "continuing at step" in err
    assert "packing" not in err
    assert_same_training(reference, out)


def test_other_pixels_are_another_run(tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=1"))[0] == 0
    before = load_file(out / "backbone.safetensors")
    code, _, err = polyscene(*words(out, SIDE, "data.cache=memory"))
    assert (code, "data.cache_side: (absent) -> 24" in err) == (2, True), err
    code, _, err = polyscene(*words(out, "max_steps=1", SIDE, "data.cache=memory", "overwrite=true"))
    assert code == 0, err
    after = load_file(out / "backbone.safetensors")
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    code, _, err = polyscene(*words(out, "data.cache=memory", "data.cache_side=20"))
    assert (code, "data.cache_side: 24 -> 20" in err) == (2, True), err
    code, _, err = polyscene(*words(out, SIDE))
    assert (code, "data.cache_side: 24 -> (absent)" in err) == (2, True), err


def test_the_side_means_nothing_without_a_cache(tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=1"))[0] == 0
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert not {"cache_side", "decode"} & kept["data"].keys()
    assert polyscene(*words(out, "max_steps=2", SIDE))[0] == 0


def test_a_finished_run_packs_nothing(tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=1", SIDE, "data.cache=disk"))[0] == 0
    (pack,) = (tmp_path / "packed_images").glob("*/images.pack")
    pack.unlink()
    code, _, err = polyscene(*words(out, "max_steps=1", SIDE, "data.cache=disk"))
    assert (code, "already finished" in err) == (0, True)
    assert not pack.exists()


def test_a_cache_that_does_not_fit_leaves_no_run(tmp_path, words, polyscene, monkeypatch):
    monkeypatch.setattr("polyscene.ssl.cached_images.device_room", lambda device: 100)
    code, _, err = polyscene(*words(tmp_path / "run", "data.cache=device"))
    assert code == 2
    assert "GiB are free on cpu; lower data.cache_side or use data.cache=disk" in err
    assert not (tmp_path / "run" / "config.yaml").exists(), "the corrected command is not refused"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.decode=device"], "data.decode=device needs a GPU, and this run is on the CPU; use data.decode=host"),
        (["data.decode=device", "data.cache=disk"], "data.cache=disk once; use data.decode=host"),
        (["data.cache_side=4"], "data.cache_side=4 is too small"),
        (["data.cache=disk", "data.cache_dir=/proc/nowhere"], "another data.cache_dir"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, polyscene, more, message):
    code, _, err = polyscene(*words(tmp_path / "run", *more))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
