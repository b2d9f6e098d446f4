"""The benchmark of Response Initialization measures what it says, on a small network."""

import argparse

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("response_init")


@pytest.fixture
def options():
    return argparse.Namespace(images=5, batch_size=2, size=64, rounds=2, seed=0, device="cpu", photos=None, stream=None)


def test_a_small_network(benchmark, options):
    weights = benchmark.random_weights("resnet10t", options)
    seconds, moments = benchmark.timings(weights, "all", options)
    errors = benchmark.feature_errors(weights, moments, "all", options)
    assert seconds["convolutions"] == len(moments) == 14
    assert len(seconds["ratio_of_rounds"]) == 2
    assert seconds["ratio"] == pytest.approx(sum(seconds["ratio_of_rounds"]) / 2, abs=1e-3)
    assert moments["layer4.0.conv1"].count == 5 * 2 * 2
    assert list(errors["largest_feature_difference"]) == ["RC", "RC+NFF", "RC+RI", "RCM"]
    assert all(value < 1e-4 for value in errors["largest_feature_difference"].values())
    assert 0 < errors["rank_24_of_32_error"]["mean_restored"] < errors["rank_24_of_32_error"]["not_restored"]


def test_the_streams_are_the_images(benchmark, options):
    assert [len(batch) for batch in benchmark.batches(options)] == [2, 2, 1]
    images = torch.cat(list(benchmark.batches(options)))
    assert images.shape == (5, 3, 64, 64)
    assert images.std() == pytest.approx(1, abs=0.6)
    # Neighbouring pixels and colours go together, as in photos.
    assert torch.corrcoef(torch.stack([images[..., 1:].flatten(), images[..., :-1].flatten()]))[0, 1] > 0.8
    assert torch.corrcoef(images.transpose(0, 1).flatten(1))[0, 1] > 0.5


def test_what_the_streaming_process_prints(benchmark, options, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "polyscene.downstream.multitask.rcm.moments.response_moments", lambda body, stream: seen.extend(stream)
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # which the script sets
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("sys.argv", ["response_init.py", "--stream", "resnet10t:8", "--images", "5", "--size", "64"])
    benchmark.main()
    assert sum(len(batch) for batch in seen) == 40
    assert 50 < float(capsys.readouterr().out) < 50_000  # MB of this process
