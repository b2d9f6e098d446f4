"""GradNorm against equation 3.7 differentiated by autograd."""

from itertools import pairwise

import pytest
import torch

from polyscene.downstream.multitask.balancing.gradients import gramian
from polyscene.downstream.multitask.balancing.gradnorm import GradNorm

AB = ("a", "b")


def test_equals_the_equation_on_a_network(alone):
    generator = torch.Generator().manual_seed(0)
    inputs, truth = torch.randn(16, 4, generator=generator), torch.randn(16, 2, generator=generator)
    start = torch.randn(2, 4, generator=generator)

    def losses(weight):
        error = inputs @ weight.T - truth
        return [error[:, 0].square().mean() + 0.1 * error[:, 1].abs().mean(), 20 * error[:, 1].square().mean()]

    weight = start.clone().requires_grad_()
    ours = GradNorm(AB, alpha=1.5, learning_rate=0.03)
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.03)
    first = None
    for _ in range(25):
        found = losses(weight)
        first = first or [loss.item() for loss in found]
        weights = ours.weigh(torch.stack(found), gramian(found, [weight], alone))
        torch.testing.assert_close(weights, w.detach(), rtol=1e-4, atol=1e-5)
        lengths = []
        for factor, loss in zip(w, found):
            (gradient,) = torch.autograd.grad(factor * loss, weight, create_graph=True)
            lengths.append(gradient.norm())
        lengths = torch.stack(lengths)
        rates = torch.tensor([loss.item() / start for loss, start in zip(found, first)])
        target = (lengths.mean() * (rates / rates.mean()) ** 1.5).detach()
        optimizer.zero_grad()
        (w.grad,) = torch.autograd.grad((lengths - target).abs().sum(), w)
        optimizer.step()
        with torch.no_grad():
            w *= 2 / w.sum()
        (step,) = torch.autograd.grad((weights * torch.stack(found)).sum(), weight)
        weight = (weight - 0.02 * step).detach().requires_grad_()


def test_the_longer_gradient_loses_weight_and_the_sum_stays():
    balancer = GradNorm(AB, alpha=1.0, learning_rate=0.01)
    gram = torch.tensor([[100.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    history = [balancer.weigh(torch.ones(2), gram) for _ in range(20)]
    for before, after in pairwise(history):
        assert after[0] < before[0]
        assert after.sum().item() == pytest.approx(2)


def test_lengths_become_equal():
    balancer = GradNorm(("a", "b", "c"), alpha=1.0, learning_rate=0.004)
    lengths = torch.tensor([4.0, 1.0, 2.0])
    gram = torch.diag(lengths.double() ** 2)
    for _ in range(700):
        weights = balancer.weigh(torch.ones(3), gram)
    inverse = 1 / lengths
    assert weights.tolist() == pytest.approx((3 * inverse / inverse.sum()).tolist(), rel=0.05)


def test_the_task_that_learns_slowly_gains_weight():
    balancer = GradNorm(AB, alpha=1.0, learning_rate=0.01)
    level = GradNorm(AB, alpha=0.0, learning_rate=0.01)
    gram = torch.eye(2, dtype=torch.float64)
    for step in range(10):
        losses = torch.tensor([10.0 * 0.8**step, 1.0])
        weights, without = balancer.weigh(losses, gram), level.weigh(losses, gram)
    assert weights[1] > 1.05 > weights[0]
    assert without.tolist() == pytest.approx([1, 1], abs=0.02)


def test_weights_stay_positive_and_finite():
    balancer = GradNorm(AB, learning_rate=0.5)
    gram = torch.tensor([[1e8, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for losses in ([0.0, 1.0], [3.0, 0.0], [3.0, 1.0], [0.0, 0.0], [3.0, 1.0]):
        weights = balancer.weigh(torch.tensor(losses), gram)
        assert weights.isfinite().all()
        assert (weights > 0).all()


def test_gradients_are_required():
    with pytest.raises(ValueError, match="gradients"):
        GradNorm(AB).weigh(torch.ones(2))
