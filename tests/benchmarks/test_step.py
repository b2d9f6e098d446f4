"""The benchmark of the training step: contestants that compute the same, parts that add up, work that is counted."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("lightly")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("step")


@pytest.fixture(autouse=True)
def memory_is_given_back(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: True)  # cannot be undone; later tests measure memory


@pytest.fixture
def case(benchmark):
    return benchmark.Case("resnet10t", (64, 32), 4, 64, "fp32")


def lightly(benchmark, case):
    from lightly_moco import LightlyMoCo

    like = benchmark.make_model(case, CPU, 0)
    model = LightlyMoCo(
        like, temperature=0.2, k=3, neighbour_weight=0.4, precision=case.precision, layout=torch.contiguous_format
    )
    optimizer = torch.optim.SGD([*model.backbone.parameters(), *model.projection_head.parameters()], lr=0.1)
    return like, model, optimizer, benchmark.make_views(case, CPU, 0)


def test_lightlys_step_computes_what_ours_does(benchmark, case):
    found = benchmark.disagreement(case, CPU, seed=0)
    assert found["loss"] < benchmark.TOLERANCE["loss"] / 10
    assert found["gradients"] < benchmark.TOLERANCE["gradients"] / 10


def test_another_loss_is_noticed(benchmark, case, monkeypatch):
    monkeypatch.setattr(benchmark, "LOSSES", replace(benchmark.LOSSES, neighbour_weight=0.5))
    monkeypatch.setattr(benchmark, "make_lightly", _with(benchmark, neighbour_weight=0.4))
    with pytest.raises(SystemExit, match="do not compute the same"):
        benchmark.measure(case, CPU, rounds=1, seed=0)


def _with(benchmark, **changed):
    make, losses = benchmark.make_lightly, benchmark.LOSSES

    def make_changed(*arguments):
        kept, benchmark.LOSSES = benchmark.LOSSES, replace(losses, **changed)
        try:
            return make(*arguments)
        finally:
            benchmark.LOSSES = kept

    return make_changed


def test_lightlys_banks_are_written_once_a_step_and_after_the_losses(benchmark, case):
    like, model, optimizer, views = lightly(benchmark, case)
    seen = []
    original = model.losses
    model.losses = lambda queries, keys: (
        seen.append((model.criterion.memory_bank.bank.clone(), keys)) or original(queries, keys)
    )
    for step in range(2):
        before = model.criterion.memory_bank.bank.clone()
        model.step(views, optimizer)
        bank, (features, keys) = seen[-1]
        written = slice(4 * step, 4 * step + 4)
        assert torch.equal(bank, before)
        torch.testing.assert_close(model.criterion.memory_bank.bank[written], F.normalize(keys, dim=1))
        torch.testing.assert_close(model.feature_bank.bank[written], F.normalize(features, dim=1))
        assert torch.equal(model.feature_bank.bank[8:], like.queue.features[8:])


def test_lightlys_momentum_encoder_follows_and_has_no_gradient(benchmark, case):
    _, model, optimizer, views = lightly(benchmark, case)
    before = [p.clone() for p in model.backbone.parameters()]
    for _ in range(2):
        model.step(views, optimizer)
        query = list(model.backbone.parameters())
    key = list(model.backbone_momentum.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, query) if a.ndim == 4)
    assert all(p.grad is None and not p.requires_grad for p in key)
    assert not any(torch.equal(a, b) for a, b in zip(before, key) if a.ndim == 4)


@pytest.mark.parametrize("name", ["ours", "lightly"])
def test_parts_add_up_and_the_step_is_done(benchmark, case, name):
    way = benchmark.contestants(case, CPU, 0)[name]
    before = way.parameters[0].clone()
    backward = torch.Tensor.backward
    found = benchmark.time_parts(way, CPU)
    labels = ["moving average", "queries, forward", "keys, forward", "losses, forward", "enqueue", "backward"]
    assert set(found) == {*labels, "optimiser", "rest"}
    assert all(value > 0 for value in found.values())
    assert not torch.equal(before, way.parameters[0])
    assert torch.Tensor.backward is backward


def test_work_is_counted(benchmark):
    roofline = sys.modules["roofline"]
    a, b = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    with roofline.Work() as work:
        product = a @ b
    assert work.operations == [(2 * 3 * 5 * 7, 4 * (15 + 35 + 21))]
    with roofline.Work() as work:
        product.sum().backward()
    assert work.flops == 2 * 3 * 5 * 7  # of b alone
    with roofline.Work() as work:
        x = torch.zeros(10)
        x.view(2, 5).t().unsqueeze(0)
        x.expand(100, 10)
    assert work.bytes == 40
    with roofline.Work() as work:
        torch.zeros(3, 7).addmm_(a, b.detach())
    assert work.flops == 2 * 3 * 5 * 7
    assert work.operations[-1][1] == 4 * (15 + 35 + 2 * 21)
    with roofline.Work() as work:
        nn.Conv2d(2, 4, 3, bias=False)(torch.randn(1, 2, 5, 5))
    assert work.flops == 2 * 9 * 9 * 2 * 4


def test_the_bound_is_the_larger_need_of_each_operation(benchmark):
    roofline = sys.modules["roofline"]
    work = roofline.Work([(100.0, 10.0), (0.0, 40.0)])
    assert work.seconds(roofline.Rates(flops=50.0, bytes=20.0)) == 2 + 2


def test_rates_are_those_of_the_best_try(benchmark, monkeypatch):
    roofline = sys.modules["roofline"]
    seconds = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(roofline, "_seconds", lambda device, work: next(seconds))
    rates = roofline.measure_rates(CPU, torch.float32)
    assert rates.flops == 2 * 1024**3 / 1
    assert rates.bytes == 2 * 4 * 2**24 / 4


def test_ratios_are_those_within_rounds(benchmark):
    found = benchmark.ratios({"ours": [1.0, 10.0, 100.0], "lightly": [2.0, 15.0, 300.0]})
    assert found == {"lightly": {"median": 2.0, "quartiles": [1.75, 2.5]}}


def test_everything_is_written(benchmark, run_main):
    words = ["--cases", "r18_16_short_queue", "--batch-size", "4", "--queue", "64", "--sizes", "64", "32"]
    words += ["--rounds", "2", "--threads", "1", "--seed", "3"]
    shown, document = run_main(benchmark, words, {"threads", "gpu", "load_before"})
    case = document["cases"]["r18_16_short_queue"]
    assert case["batch_size"] == 4
    assert set(case["ratio"]) == set(case["processor_ratio"]) == {"lightly", "lightly, channels last"}
    assert [len(found) for found in case["step_ms_of_rounds"].values()] == [2, 2, 2]
    assert case["roofline"]["bound_ms"] > 0
    assert document["seed"] == 3
    assert "lightly" in document["environment"]
    assert "queries, forward" in shown
    assert "GFLOP/s" in shown


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_without_lightly_there_is_one_line(benchmark, refusal, monkeypatch, preset):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "lightly", None)
    said = refusal(benchmark.main, ["--preset", preset])
    assert said.startswith("lightly, ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--cases", "r50_256"], ["--sizes", "64", "16"]])
def test_options_that_cannot_be_are_refused(benchmark, refusal, words):
    assert words[0] in refusal(benchmark.parse, words)
