"""Uncertainty, DWA, DTP and heuristic 2 against numbers found by hand or another way."""

import math

import pytest
import torch

from polyscene.downstream.multitask.balancing.dtp import DynamicTaskPriority
from polyscene.downstream.multitask.balancing.dwa import DynamicWeightAverage
from polyscene.downstream.multitask.balancing.similar_losses import SimilarLosses
from polyscene.downstream.multitask.balancing.uncertainty import Uncertainty

AB = ("a", "b")


def test_uncertainty_descends_on_equation_3_6():
    ours = Uncertainty(AB, learning_rate=0.05)
    sigmas = torch.zeros(2, requires_grad=True)  # logarithms of sigma^2
    optimizer = torch.optim.Adam([sigmas], lr=0.05)
    for step in range(20):
        losses = torch.tensor([2.0 + math.sin(step), 0.3])
        variance = sigmas.exp()
        expected = (1 / (2 * variance)).detach()
        torch.testing.assert_close(ours.weigh(losses), expected, rtol=1e-4, atol=1e-6)
        optimizer.zero_grad()
        (losses / (2 * variance) + variance.sqrt().log()).sum().backward()
        optimizer.step()


def test_uncertainty_finds_the_closed_form():
    """d/d sigma^2 of L / (2 sigma^2) + log sigma is 0 at sigma^2 = L; of L / sigma^2 + log sigma at 2 L."""
    losses = torch.tensor([4.0, 0.5])
    regression = Uncertainty(AB, learning_rate=0.02)
    classification = Uncertainty(AB, classification=("b",), learning_rate=0.02)
    for _ in range(600):
        weights, others = regression.weigh(losses), classification.weigh(losses)
    assert regression.variances().tolist() == pytest.approx([4.0, 0.5], rel=1e-3)
    assert classification.variances().tolist() == pytest.approx([4.0, 1.0], rel=1e-3)
    assert weights.tolist() == pytest.approx([1 / 8, 1.0], rel=1e-3)
    assert others.tolist() == pytest.approx([1 / 8, 1.0], rel=1e-3)


def test_uncertainty_takes_a_constant_factor_out_of_a_loss():
    plain, scaled = Uncertainty(AB, learning_rate=0.02), Uncertainty(AB, learning_rate=0.02)
    for _ in range(600):
        one, other = plain.weigh(torch.tensor([1.0, 2.0])), scaled.weigh(torch.tensor([1.0, 6.0]))
    assert (other / one).tolist() == pytest.approx([1, 1 / 3], rel=1e-3)


def test_dwa_by_hand():
    balancer = DynamicWeightAverage(AB, period=1, temperature=2.0)
    losses = [(4.0, 1.0), (2.0, 1.0), (2.0, 0.5), (9.0, 9.0)]
    found = [balancer.weigh(torch.tensor(pair)).tolist() for pair in losses]
    assert found[0] == found[1] == [1, 1]
    # r = (2/4, 1/1): 2 e^.25 / (e^.25 + e^.5)
    low = 2 * math.exp(0.25) / (math.exp(0.25) + math.exp(0.5))
    assert found[2] == pytest.approx([low, 2 - low])
    assert low == pytest.approx(0.875647, abs=1e-6)
    # r = (2/2, 0.5/1)
    assert found[3] == pytest.approx([2 - low, low])


def test_dwa_of_periods_compares_their_means():
    balancer = DynamicWeightAverage(AB, period=3, temperature=0.5)
    first, second = [(3.0, 1.0), (6.0, 1.0), (9.0, 1.0)], [(1.0, 2.0), (3.0, 2.0), (5.0, 2.0)]
    for pair in first + second:
        assert balancer.weigh(torch.tensor(pair)).tolist() == [1, 1]
    expected = 2 * torch.softmax(torch.tensor([3 / 6, 2 / 1]) / 0.5, dim=0)
    for pair in [(7.0, 7.0), (1.0, 8.0), (1.0, 1.0)]:
        torch.testing.assert_close(balancer.weigh(torch.tensor(pair)), expected)
    assert not torch.allclose(balancer.weigh(torch.tensor([1.0, 1.0])), expected)


def test_dwa_does_not_see_scales():
    plain, scaled = DynamicWeightAverage(AB, period=1), DynamicWeightAverage(AB, period=1)
    for losses in torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) + 0.1:
        weights = plain.weigh(losses)
        torch.testing.assert_close(weights, scaled.weigh(losses * torch.tensor([1.0, 100.0])))
        assert weights.sum().item() == pytest.approx(2)


def test_dwa_survives_losses_of_zero():
    balancer = DynamicWeightAverage(AB, period=1)
    for losses in ([0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]):
        assert balancer.weigh(torch.tensor(losses)).isfinite().all()


def test_dtp_by_hand():
    balancer = DynamicTaskPriority(AB, focus={"b": 2.0}, smoothing=1.0)
    none = torch.zeros(2)
    assert balancer.weigh(none).tolist() == [1, 1]
    weights = balancer.weigh(none, kpis=torch.tensor([0.5, 0.9]))
    assert weights.tolist() == pytest.approx([-0.5 * math.log(0.5), -0.01 * math.log(0.9)], rel=1e-4)
    assert weights.tolist() == pytest.approx([0.346574, 0.001054], abs=1e-6)


def test_dtp_averages_and_passes_over_unknown_kpis():
    balancer = DynamicTaskPriority(AB, {"a": 3.0}, focus=0.0, smoothing=0.25)
    nan = float("nan")
    for kpis in ([0.4, nan], [0.8, nan], [nan, 0.2]):
        weights = balancer.weigh(torch.zeros(2), kpis=torch.tensor(kpis))
    assert weights.tolist() == pytest.approx([-3 * math.log(0.75 * 0.4 + 0.25 * 0.8), -math.log(0.2)], rel=1e-5)
    balancer.observe(torch.tensor([0.5, 0.2]))  # from a validation
    assert weights.tolist() == balancer.weigh(torch.zeros(2)).tolist()


def test_dtp_is_finite_at_both_ends():
    balancer = DynamicTaskPriority(AB, smoothing=1.0, floor=0.01)
    weights = balancer.weigh(torch.zeros(2), kpis=torch.tensor([0.0, 1.0])).tolist()
    assert weights == pytest.approx([-0.99 * math.log(0.01), -0.01 * math.log(0.99)], rel=1e-4)


def test_heuristic_2_gives_the_example_of_the_thesis():
    balancer = SimilarLosses(AB, iterations=3)
    for losses in ([50.0, 2.0], [100.0, 0.5], [150.0, 0.5]):
        assert balancer.weigh(torch.tensor(losses)).tolist() == [1, 1]
    for losses in ([1.0, 1.0],) * 5:
        assert balancer.weigh(torch.tensor(losses)).tolist() == pytest.approx([1, 100])


def test_heuristic_2_repeated_importance_and_sum():
    balancer = SimilarLosses(AB, iterations=2, repeat=True)
    found = [balancer.weigh(torch.tensor(pair)).tolist() for pair in [(4.0, 1.0)] * 2 + [(1.0, 3.0)] * 2 + [(1.0, 1.0)]]
    assert found == [[1, 1], [1, 1], [1, 4], [1, 4], [3, 1]]
    important = SimilarLosses(AB, {"a": 5.0}, iterations=1)
    assert important.weigh(torch.tensor([4.0, 1.0])).tolist() == [5, 1]
    assert important.weigh(torch.tensor([4.0, 1.0])).tolist() == [5, 4]
    scaled = SimilarLosses(AB, iterations=1, keep_sum=True)
    scaled.weigh(torch.tensor([3.0, 1.0]))
    assert scaled.weigh(torch.tensor([3.0, 1.0])).tolist() == pytest.approx([0.5, 1.5])


def test_heuristic_2_takes_a_constant_factor_out_of_a_loss():
    weights = []
    for factor in (1.0, 7.0):
        balancer = SimilarLosses(AB, iterations=2)
        for losses in torch.tensor([[2.0, 1.0], [3.0, 2.0], [1.0, 1.0]]):
            found = balancer.weigh(losses * torch.tensor([1.0, factor]))
        weights.append(found / found[0])
    assert (weights[0][1] / weights[1][1]).item() == pytest.approx(7)
