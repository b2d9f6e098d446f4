"""The benchmark of MTI-Net's training step compares ways that compute the same."""

import copy
from dataclasses import replace

import pytest
import torch

from polyscene.downstream.multitask.step import task_losses, weighted_sum

SMALL = ["--size", "64", "64", "--batch-size", "2", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("mti_net_step")


def prepared(benchmark, case, *words):
    options = benchmark.parse([*SMALL, *words])
    return benchmark.contestants(case, options), benchmark.make_data(case, options)


def _vector(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("case", ["hrnet18", "hrnet18_aux", "r18fpn"])
def test_losses_gradients_and_statistics_are_the_same(benchmark, case):
    ways, data = prepared(benchmark, case)
    if case == "r18fpn":  # wide and slow
        del ways["reference, default layout"]
    found = benchmark.agreement(ways, data)
    assert list(found) == list(ways)[1:]
    for kinds in found.values():
        assert list(kinds) == ["loss", "gradients", "batch_norm_statistics"]
        assert max(kinds.values()) < benchmark.TOLERANCE


def test_another_network_is_noticed(benchmark, monkeypatch):
    def without_distillation(model, maps, size):
        for scale in model.scales.values():
            for receiver in scale.distillation.tasks.values():
                for attention in receiver.values():
                    attention.transform.weight.data.mul_(0.9)
        return benchmark.reference_outputs(model, maps, size)

    ways = {**benchmark.CONTESTANTS}
    ways["reference"] = (without_distillation, *ways["reference"][1:])
    monkeypatch.setattr(benchmark, "CONTESTANTS", ways)
    with pytest.raises(SystemExit, match="hrnet18: reference and ours do not compute the same"):
        benchmark.measure("hrnet18", benchmark.parse(SMALL))


def test_an_unused_parameter_is_noticed(benchmark):
    ways, data = prepared(benchmark, "hrnet18")
    first = replace(ways["ours"], losses=lambda outputs, targets, specs: outputs.final["depth"].mean())
    with pytest.raises(SystemExit, match="ours: no gradient reaches heads.tasks.segmentation."):
        benchmark.agreement({"ours": first}, data)


def test_ours_is_the_model_as_the_project_runs_it(benchmark):
    ways, data = prepared(benchmark, "hrnet18_aux")
    way = ways["ours"]
    images = data.images.contiguous(memory_format=torch.channels_last)
    losses = task_losses(way.model(images, way.model.tasks), data.targets, data.specs)
    expected = weighted_sum(losses, dict.fromkeys(data.specs, 1.0))
    assert torch.equal(benchmark.forward(way, data), expected)
    assert sorted(losses) == ["depth", "edges", "normals", "segmentation"]


def test_the_parts_are_the_whole_step(benchmark):
    ways, data = prepared(benchmark, "hrnet18")
    whole = ways["ours"]
    whole.optimizer = torch.optim.SGD(whole.model.parameters(), lr=0.1)  # moves weights in proportion to gradients
    cut = replace(whole, model=copy.deepcopy(whole.model))
    cut.optimizer = torch.optim.SGD(cut.model.parameters(), lr=0.1)
    initial = _vector(whole.model)
    benchmark.step(whole, data)
    parts = benchmark.step_in_parts(cut, data)
    assert (_vector(whole.model) - initial).norm() > 0.01
    assert (_vector(whole.model) - _vector(cut.model)).norm() < 1e-4 * (_vector(whole.model) - initial).norm()
    for one, other in zip(whole.model.buffers(), cut.model.buffers(), strict=True):
        assert torch.equal(one, other)
    assert set(parts) == {
        *(f"{part}, {way}" for part in ("backbone", "decoder", "losses") for way in ("forward", "backward")),
        "update",
    }
    assert all(milliseconds > 0 for milliseconds in parts.values())


def test_memory_kept_for_the_backward_pass(benchmark):
    ways, data = prepared(benchmark, "hrnet18", "--size", "160", "256")
    ours, reference = (benchmark.kept_for_backward(ways[name], data) for name in ("ours", "reference"))
    # The maps of all scales side by side at 1/4 of the image, for both tasks, are not kept; copies of filters are.
    joined = 2 * 2 * (18 + 36 + 72 + 144) * 40 * 64 * 4 / 2**20
    assert reference - joined < ours < reference


def test_what_is_written(benchmark, run_main):
    words = [*SMALL, "--cases", "hrnet18", "--rounds", "2", "--precision", "bf16"]
    shown, found = run_main(benchmark, words, {"device", "load_before"})
    assert "whole step" in shown
    assert "losses, backward" in shown
    assert found["size"] == [64, 64]
    assert (found["batch_size"], found["rounds"], found["seed"], found["threads"]) == (2, 2, 0, 1)
    (case,) = found["cases"]
    times = case["step_ms"]
    assert list(times) == list(benchmark.CONTESTANTS)
    assert all(len(rounds) == 2 for rounds in case["step_ms_of_rounds"].values())
    fastest = min(times["reference"], times["reference, default layout"])
    assert case["ratio"] == pytest.approx(fastest / times["ours"], abs=1e-3)
    assert case["processor_ratio"] == benchmark.ratio(case["processor_ms"])


def test_median_and_ratio_leave_out_the_warm_up(benchmark):
    medians = benchmark._medians({"ours": [99, 2, 4, 3], "a": [0, 9, 6, 8], "b": [0, 7, 7, 1]})
    assert medians == {"ours": 3, "a": 8, "b": 7}
    assert benchmark.ratio(medians) == pytest.approx(7 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "tpu"], "--device tpu: cpu, cuda or cuda:N"),
        (["--batch-size", "1"], "--batch-size 1: give 2 or more"),
        (["--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--threads", "0"], "--threads 0: give 1 or more"),
        (["--size", "32", "64"], "--size 32 64: give 64 or more"),
        (["--cases", "vgg"], "invalid choice: 'vgg'"),
        (["--out", "x", "--precision", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_wrong_options_are_refused(benchmark, refusal, words, message):
    assert message in refusal(benchmark.parse, words)
