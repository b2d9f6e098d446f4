"""Every metric: merging shards, adding states and one pass give the same numbers."""

import math

import pytest
import torch

from polyscene.downstream.multitask.metrics.depth import DepthMetric
from polyscene.downstream.multitask.metrics.edges import EdgeMetric, benchmark_thresholds
from polyscene.downstream.multitask.metrics.normals import NormalsMetric
from polyscene.downstream.multitask.metrics.saliency import SaliencyMetric
from polyscene.downstream.multitask.metrics.segmentation import SegmentationMetric

SIZE = (24, 31)


def classes(generator):
    return [torch.randint(0, 4, SIZE, generator=generator) for _ in range(2)]


def foreground(generator):
    return torch.rand(SIZE, generator=generator), (torch.rand(1, *SIZE, generator=generator) > 0.7).float()


def directions(generator):
    return [torch.nn.functional.normalize(torch.randn(3, *SIZE, generator=generator), dim=0) for _ in range(2)]


def metres(generator):
    return torch.rand(SIZE, generator=generator) * 9, torch.rand(1, *SIZE, generator=generator) * 9 + 0.5


METRICS = {
    "segmentation": (lambda: SegmentationMetric(4), classes),
    "saliency survey": (lambda: SaliencyMetric("survey"), foreground),
    "saliency atrc": (lambda: SaliencyMetric("atrc"), foreground),
    "normals": (NormalsMetric, directions),
    "depth survey": (lambda: DepthMetric("survey"), metres),
    "depth rcm": (lambda: DepthMetric("rcm"), metres),
    "edges": (lambda: EdgeMetric(0.05, benchmark_thresholds(5)), foreground),
}


def images(sample, count=5):
    generator = torch.Generator().manual_seed(3)
    return [(*sample(generator), torch.rand(SIZE, generator=generator) > 0.1) for _ in range(count)]


def seen(make, batch):
    metric = make()
    for image in batch:
        metric.update(*image)
    return metric


@pytest.mark.parametrize("name", METRICS)
def test_shards_give_what_one_pass_gives(name):
    make, sample = METRICS[name]
    batch = images(sample)
    expected = seen(make, batch).compute()
    assert all(math.isfinite(value) for value in expected.values())

    merged = seen(make, batch[:2])
    merged.merge(seen(make, batch[2:]))
    assert merged.compute() == pytest.approx(expected, rel=1e-12)

    # What an all-reduce does: the sum of all processes' states; one process saw no image.
    states = [seen(make, shard).state() for shard in (batch[:1], batch[1:], [])]
    reduced = make()
    reduced.load_state({key: sum(state[key] for state in states) for key in states[0]})
    assert reduced.compute() == pytest.approx(expected, rel=1e-12)
    assert all(value.dtype in (torch.int64, torch.float64) for value in states[0].values())


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_goes_on_from_its_state_and_states_are_copies(name):
    make, sample = METRICS[name]
    batch = images(sample)
    first = seen(make, batch[:3])
    state = first.state()
    before = {key: value.clone() for key, value in state.items()}
    resumed = make()
    resumed.load_state(state)
    for image in batch[3:]:
        resumed.update(*image)
        first.update(*image)
    assert resumed.compute() == first.compute()
    assert all(torch.equal(state[key], before[key]) for key in state)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_seen_is_not_a_number(name):
    make, sample = METRICS[name]
    nothing_valid = [
        (prediction, values, torch.zeros(SIZE, dtype=torch.bool)) for prediction, values, _ in images(sample)
    ]
    for batch in ([], [] if name == "edges" else nothing_valid):
        values = seen(make, batch).compute()
        values.pop("threshold", None)
        assert all(math.isnan(value) for value in values.values())


def test_other_metrics_and_settings_are_refused():
    metric = EdgeMetric(0.0075)
    with pytest.raises(ValueError, match="cannot merge"):
        metric.merge(EdgeMetric(0.011))
    with pytest.raises(ValueError, match="cannot merge"):
        metric.merge(NormalsMetric())
    with pytest.raises(ValueError, match="another metric"):
        metric.load_state(NormalsMetric().state())
    with pytest.raises(ValueError, match="another metric"):
        SegmentationMetric(3).load_state(SegmentationMetric(4).state())


@pytest.mark.parametrize("name", METRICS)
def test_sizes_must_agree(name):
    make, sample = METRICS[name]
    prediction, values, valid = images(sample, 1)[0]
    with pytest.raises(ValueError, match="one size"):
        make().update(prediction[..., :-1], values, valid)
    with pytest.raises(ValueError, match="bool mask"):
        make().update(prediction, values, valid.long())
