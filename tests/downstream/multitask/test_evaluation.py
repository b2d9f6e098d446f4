"""Evaluation against a loop over single images."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from tiny_dense import alone, make_images, make_model

from polyscene.downstream.multitask.data.records import Sample
from polyscene.downstream.multitask.data.transforms import pad_image
from polyscene.downstream.multitask.edge_counting import EdgeCounter, image_counts
from polyscene.downstream.multitask.evaluation import batches_by_size, class_scores, measure, predict
from polyscene.downstream.multitask.metrics.edges import EdgeMetric
from polyscene.runtime.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def model():
    made = make_model(frozen_norm=False)
    with torch.no_grad():
        for head in made.tasks.values():
            head.weight.mul_(5)
    return made.train()


def normalised(image):
    return T.normalize(image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]


@torch.no_grad()
def one_by_one(model, images, stretch=None, multiple=16):
    """The scores of a loop over images, with torch's own functions."""
    model.eval()
    metrics = {name: spec.make_metric() for name, spec in images.tasks.items()}
    for index in range(len(images)):
        sample = images.read(index)
        height, width = sample.image.shape[1:]
        if stretch is None:
            outputs = model(normalised(pad_image(sample.image, multiple=multiple))).final
            outputs = {name: output[..., :height, :width] for name, output in outputs.items()}
        else:
            small = F.interpolate(sample.image[None].float(), stretch, mode="bilinear", align_corners=False)
            outputs = model(normalised(small[0].round())).final
            outputs = {
                name: F.interpolate(output, (height, width), mode="bilinear", align_corners=False)
                for name, output in outputs.items()
            }
        for name, output in outputs.items():
            metrics[name].update(images.tasks[name].activate(output)[0], *sample.targets[name])
    model.train()
    return {name: metric.compute() for name, metric in metrics.items()}


def scores_of(model, images, **options):
    options = {"tasks": list(images.tasks), "device": torch.device("cpu"), "world": alone(), **options}
    return {name: metric.compute() for name, metric in measure(model, images, **options).items()}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for task, scores in expected.items():
        # Batches are convolved with another rounding than single images: a pixel may change its class.
        assert found[task] == pytest.approx(scores, rel=2e-3, abs=1e-3), task


@pytest.mark.parametrize("options", [{"multiple": 16}, {"multiple": 8}, {"stretch": (24, 40)}])
def test_scores_equal_a_loop_over_single_images(model, images, options):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_close(scores_of(model, images, batch_size=3, **options), one_by_one(model, images, **options))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_workers_and_the_edge_pool_change_nothing(model, images):
    expected = scores_of(model, images, batch_size=1)
    assert scores_of(model, images, batch_size=1, workers=2) == expected


def test_some_of_the_tasks(model, images):
    whole = scores_of(model, images, batch_size=2)
    some = scores_of(model, images, batch_size=2, tasks=["depth"])
    assert list(some) == ["depth"]
    assert some["depth"] == whole["depth"]


def test_equal_sizes_are_run_together(images):
    samples = [images.read(index) for index in range(8)]  # sizes 0 1 2 0 1 2 0 1
    groups = [[s.name for s in group] for group in batches_by_size(iter(samples), 2, None, 1)]
    assert groups == [["00", "03"], ["01", "04"], ["02", "05"], ["06"], ["07"]]
    padded = [[s.name for s in group] for group in batches_by_size(iter(samples), 3, None, 48)]
    assert padded == [["00", "01", "02"], ["03", "04", "05"], ["06", "07"]]
    stretched = [[s.name for s in group] for group in batches_by_size(iter(samples), 5, (24, 32), 16)]
    assert [len(group) for group in stretched] == [5, 3]


def test_only_so_many_samples_wait():
    """A data set where every image has another size must not end up in memory as a whole."""
    taken = []

    def samples():
        for number in range(40):
            taken.append(Sample(str(number), torch.zeros(3, 10 + number, 10, dtype=torch.uint8), {}))
            yield taken[-1]

    done, most = [], 0
    for group in batches_by_size(samples(), 2, None, 1):
        most = max(most, len(taken) - len(done))
        done += [sample.name for sample in group]
    assert sorted(done, key=int) == [str(number) for number in range(40)]
    assert most == 8


@torch.no_grad()
def test_predictions_have_the_size_of_the_image(model, images):
    model.eval()
    photo = images.read(0).image
    (found,) = predict(model, [photo], images.tasks, torch.device("cpu"))
    assert found["segmentation"].shape == found["depth"].shape == found["edges"].shape == photo.shape[1:]
    assert found["normals"].shape == photo.shape
    # What is outside the image is cut off, not squeezed in.
    whole = model(normalised(pad_image(photo, multiple=16))).final["segmentation"]
    assert torch.equal(found["segmentation"], whole.argmax(1)[0, : photo.shape[1], : photo.shape[2]])
    model.train()


def test_class_scores_name_the_classes(model, images):
    metrics = measure(model, images, tasks=["segmentation", "depth"], device=torch.device("cpu"), world=alone())
    found = class_scores(metrics, images.tasks)
    assert list(found) == ["segmentation"]
    assert set(found["segmentation"]) <= {"a", "b", "c", "d"}
    mean = sum(found["segmentation"].values()) / len(found["segmentation"])
    assert mean == pytest.approx(metrics["segmentation"].compute()["miou"])


# Edges


def edge_maps(count=5):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        strength = torch.rand(24, 30, generator=generator)
        truth = (torch.rand(1, 24, 30, generator=generator) > 0.9).float()
        yield strength, truth, torch.rand(24, 30, generator=generator) > 0.05


def test_a_pool_counts_what_the_metric_counts():
    serial, pooled = EdgeMetric(0.03), EdgeMetric(0.03)
    with EdgeCounter(pooled, 2) as counter:
        for image in edge_maps():
            serial.update(*image)
            counter.update(*image)
        counter.finish()
    for name, value in serial.state().items():
        assert torch.equal(value, pooled.state()[name]), name
    assert serial.compute() == pooled.compute()


def test_settings_reach_the_pool():
    metric = EdgeMetric(0.05, thresholds=(0.3, 0.6), suppress=False)
    with EdgeCounter(metric, 1) as counter:
        for image in edge_maps(2):
            counter.update(*image)
        counter.finish()
    expected = EdgeMetric(0.05, thresholds=(0.3, 0.6), suppress=False)
    for image in edge_maps(2):
        expected.update(*image)
    assert torch.equal(metric.sums["counts"], expected.sums["counts"])
    counts = image_counts(*(part.numpy() for part in next(edge_maps())), (0.05, (0.3, 0.6), False, 4))
    assert counts.shape == (2, 4)


def test_a_killed_process_of_the_pool_is_one_line():
    with EdgeCounter(EdgeMetric(0.03), 1) as counter:
        images = list(edge_maps(3))
        counter.update(*images[0])
        counter.finish()
        (process,) = counter._pool._processes
        os.kill(process, signal.SIGKILL)

        def go_on():
            for _ in range(50):
                counter.update(*images[1])
            counter.finish()

        with pytest.raises(UserError, match=r"a process that matches edges died.*data\.workers"):
            go_on()


KILLED = """
import os, sys
import torch
from polyscene.downstream.multitask.edge_counting import EdgeCounter
from polyscene.downstream.multitask.metrics.edges import EdgeMetric

with EdgeCounter(EdgeMetric(0.03), 2) as counter:
    counter.update(torch.rand(8, 8), torch.ones(1, 8, 8), torch.ones(8, 8, dtype=torch.bool))
    counter.finish()
    print(*counter._pool._processes, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_no_process_of_the_pool_outlives_the_main_process():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as main:
        pool = [int(word) for word in main.stdout.readline().split()]
        assert main.wait(60) == -signal.SIGKILL
    assert len(pool) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, pool)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pool))


def alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
