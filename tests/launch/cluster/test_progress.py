"""Steps done and left, from config.yaml and metrics.jsonl."""

import json

import pytest
import torch
from safetensors.torch import save_file

from polyscene.launch.cluster.progress import end_step, read_metrics, read_progress, read_tail, saved_metadata


@pytest.fixture
def run(tmp_path):
    """``run(config, lines, name)``: a run directory; ``lines`` are the objects of its metrics.jsonl."""

    def make(config, lines=(), name="run"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("# torch: 2.11\n" + json.dumps(config))
        if lines:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def line(step, per_epoch, **more):
    """What the training loop logs, with its six digits."""
    return {"step": step, "loss": 2.5, "epoch": float(f"{step / per_epoch:.6g}"), "images_per_second": 200.0, **more}


def test_epochs_become_steps(run):
    config = {"epochs": 150, "max_steps": None, "batch_size": 32}
    progress = read_progress(run(config, [line(s, 15) for s in range(15, 500, 15)]))
    assert (progress.step, progress.total, progress.epoch, progress.epochs) == (495, 2250, 33, 150)
    assert progress.percent == pytest.approx(22)
    assert progress.seconds_left == pytest.approx((2250 - 495) * 32 / 200)
    assert progress.metrics == {"loss": 2.5}


def test_six_digits_of_the_epoch_are_enough_for_the_largest_schedules(run):
    config = {"epochs": 800, "batch_size": 256}
    progress = read_progress(run(config, [line(3_999_950, 5004)]))
    assert progress.total == 800 * 5004


def test_a_line_of_an_evaluation_does_not_hide_the_speed(run):
    progress = read_progress(run({"epochs": 10, "batch_size": 8}, [line(30, 3), {"step": 30, "knn_accuracy": 0.25}]))
    assert (progress.step, progress.total, progress.images_per_second) == (30, 30, 200)
    assert progress.metrics == {"loss": 2.5, "knn_accuracy": 0.25}
    assert progress.seconds_left == 0


def test_before_the_first_line(run):
    progress = read_progress(run({"epochs": 10, "batch_size": 8}))
    assert (progress.step, progress.total, progress.epochs, progress.percent) == (None, None, 10, None)
    progress = read_progress(run({"iterations": 60, "batch_size": 8}, name="b"))
    assert (progress.step, progress.total, progress.percent) == (None, 60, 0)


@pytest.mark.parametrize(
    ("config", "per_epoch", "total"),
    [
        ({"epochs": 10}, 7, 70),
        ({"epochs": 10, "max_steps": 9}, 7, 9),
        ({"epochs": 0.1}, 3, 1),
        ({"iterations": 60, "epochs": None}, None, 60),
        ({"iterations": 60, "max_steps": 100}, 5, 60),
        ({"iterations": 0}, 5, None),
        ({"epochs": 10}, None, None),
        ({"epochs": 10, "max_steps": 9}, None, None),
        ({"weights": "random"}, None, None),
        ({"epochs": "ten"}, 5, None),
    ],
)
def test_the_end_of_a_schedule(config, per_epoch, total):
    assert end_step(config, per_epoch) == total


def test_seeds_add_up(run, tmp_path):
    config = {"iterations": 60, "batch_size": 8, "seeds": [3, 5, 7]}
    folder = run(config, name="seeds")
    run({**config, "seeds": None}, [line(60, 10)], "seeds/seed-3")
    run({**config, "seeds": None}, [line(20, 10, images_per_second=40.0)], "seeds/seed-5")
    progress = read_progress(folder)
    assert (progress.step, progress.total, progress.epoch, progress.epochs) == (80, 180, 8, 18)
    assert progress.seconds_left == pytest.approx(100 * 8 / 40)


def test_damage_is_no_trouble(run, tmp_path):
    assert read_progress(tmp_path / "absent").step is None
    folder = run({"epochs": 10, "batch_size": 8}, [line(3, 3)])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": true}\n[1]\n{"step": 6, "epoch": NaN}\n{"st')
    assert read_progress(folder).step == 6
    assert read_progress(folder).total == 30
    (folder / "config.yaml").write_text("a: [")
    assert read_progress(folder).total is None


def test_only_the_end_of_a_long_file_is_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {i}}}\n' for i in range(10000)))
    found = read_metrics(file)
    assert found[-1] == {"step": 9999}
    assert 1000 < len(found) < 10000
    assert [entry["step"] for entry in found] == list(range(found[0]["step"], 10000))
    assert read_tail(file, size=30) == ['{"step": 9999}']
    assert len(read_tail(file, size=10**9)) == 10000


def test_metadata_without_the_tensors(tmp_path):
    file = tmp_path / "backbone.safetensors"
    save_file({"x": torch.zeros(3)}, file, metadata={"step": "12", "epochs": "4"})
    assert saved_metadata(file) == {"step": "12", "epochs": "4"}
    for damage in (b"", b"1234", b"\xff" * 20, file.read_bytes()[:40]):
        file.write_bytes(damage)
        assert saved_metadata(file) == {}
    assert saved_metadata(tmp_path / "absent") == {}
