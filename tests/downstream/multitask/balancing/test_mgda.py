"""The min-norm problem against SciPy and its optimality conditions."""

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.downstream.multitask.balancing.mgda import MGDA
from polyscene.downstream.multitask.balancing.min_norm import min_norm_weights
from polyscene.runtime.errors import UserError

ABC = ("a", "b", "c")


def gradients(tasks, size, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(tasks, size, generator=generator, dtype=torch.float64) + 0.4
    return found * torch.exp(spread * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [3, 20])
def test_optimality(tasks, size):
    """KKT: the gradient of the length, M a, is smallest and equal on all tasks in use."""
    for seed in range(4):
        vectors = gradients(tasks, size, seed, spread=2.0)
        matrix = vectors @ vectors.T
        weights = min_norm_weights(matrix)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert (weights >= 0).all()
        slope = matrix @ weights
        scale = matrix.diagonal().max()
        length = weights @ slope
        assert (slope >= length - 1e-9 * scale).all()
        assert ((slope - length).abs() * weights < 1e-9 * scale).all()


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_agrees_with_scipy(tasks):
    for seed in range(3):
        vectors = gradients(tasks, 12, 10 + seed, spread=0.5)
        matrix = (vectors @ vectors.T).numpy()
        best = minimize(
            lambda a, m=matrix: a @ m @ a,
            np.full(tasks, 1 / tasks),
            jac=lambda a, m=matrix: 2 * m @ a,
            bounds=[(0, 1)] * tasks,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert best.success
        weights = min_norm_weights(torch.from_numpy(matrix)).numpy()
        assert weights == pytest.approx(best.x, abs=1e-4)
        assert weights @ matrix @ weights <= best.fun + 1e-9


def test_special_cases():
    def solve(rows):
        vectors = torch.tensor(rows, dtype=torch.float64)
        return min_norm_weights(vectors @ vectors.T).tolist()

    assert solve([[2.0, 0.0], [0.0, 1.0]]) == pytest.approx([0.2, 0.8])  # orthogonal: 1 / length^2
    assert solve([[1.0, 0.0], [3.0, 0.5]]) == pytest.approx([1, 0], abs=1e-9)  # the shorter one helps both
    assert solve([[1.0, 0.0], [-3.0, 0.0]]) == pytest.approx([0.75, 0.25])  # opposite: they cancel
    assert solve([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]]) == pytest.approx([0, 1, 0], abs=1e-9)  # nothing is shorter
    assert solve([[1.0, 2.0]] * 3) == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert solve([[0.0, 0.0]] * 3) == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert solve([[1e-9, 0.0, 0.0], [0.0, 2e-9, 0.0], [0.0, 0.0, 1e6]]) == pytest.approx([0.8, 0.2, 0])


def test_a_louder_loss_weighs_less():
    """Orthogonal gradients, one scaled by c: its weight falls to 1 / (1 + c^2)."""
    for factor in (1.0, 3.0, 10.0):
        gram = torch.diag(torch.tensor([factor**2, 1.0], dtype=torch.float64))
        weights = MGDA(("a", "b")).weigh(torch.tensor([factor, 1.0]), gram)
        assert weights[0].item() == pytest.approx(1 / (1 + factor**2))


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_steps_along_a_direction_that_helps_every_task(normalize):
    losses = torch.tensor([1.0, 30.0, 0.2])
    for seed in range(5):
        vectors = gradients(3, 6, 20 + seed)
        weights = MGDA(ABC, normalize=normalize, total=3.0).weigh(losses, vectors @ vectors.T)
        assert weights.sum().item() == pytest.approx(3, rel=1e-6)
        direction = weights.double() @ vectors
        assert (vectors @ direction > 0).all()


@pytest.mark.parametrize("normalize", ["l2", "loss"])
def test_normalised_variants_do_not_see_scales(normalize):
    vectors, losses = gradients(3, 6, 3, spread=0.2), torch.tensor([1.0, 2.0, 0.5])
    scale = torch.tensor([1.0, 100.0, 1.0])
    balancer = MGDA(ABC, normalize=normalize)
    plain = balancer.weigh(losses, vectors @ vectors.T)
    louder = scale.unsqueeze(1).double() * vectors
    scaled = balancer.weigh(losses * scale, louder @ louder.T) * scale
    torch.testing.assert_close(scaled / scaled.sum(), plain / plain.sum())


def test_a_batch_without_a_task():
    vectors = gradients(3, 6, 4)
    vectors[1] = 0
    for normalize in ("none", "l2", "loss", "loss+"):
        weights = MGDA(ABC, normalize=normalize).weigh(torch.tensor([1.0, 0.0, 1.0]), vectors @ vectors.T)
        assert weights.isfinite().all()


def test_torchjd_agrees_where_it_is_exact():
    pytest.importorskip("torchjd")
    for seed in range(3):
        vectors = gradients(2, 6, seed)
        matrix = vectors @ vectors.T
        found = make_balancer("mgda", ("a", "b"), mgda_solver="torchjd").weigh(torch.ones(2), matrix)
        torch.testing.assert_close(found, MGDA(("a", "b")).weigh(torch.ones(2), matrix), rtol=1e-5, atol=1e-6)
    vectors = gradients(4, 9, 5, spread=0.3)
    matrix = vectors @ vectors.T
    found = make_balancer("mgda", (*ABC, "d"), mgda_solver="torchjd").weigh(torch.ones(4), matrix).double()
    exact = min_norm_weights(matrix)
    assert exact @ matrix @ exact <= found @ matrix @ found <= 1.05 * (exact @ matrix @ exact)


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="at most 10 tasks; use solver=torchjd"):
        MGDA([f"t{number}" for number in range(11)])
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match="pip install torchjd"):
        MGDA(ABC, solver="torchjd")


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_a_task_without_gradient_is_left_out(normalize):
    """No valid pixel in the batch: the others are weighed as if it were not there."""
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = MGDA(["a", "b"], normalize=normalize).weigh(torch.tensor([1.0, 2.0]), rows @ rows.T)
    rows = torch.cat([rows, torch.zeros(1, 5, dtype=torch.float64)])
    three = MGDA(["a", "b", "c"], normalize=normalize).weigh(torch.tensor([1.0, 2.0, 0.0]), rows @ rows.T)
    torch.testing.assert_close(three[:2], both, rtol=1e-5, atol=1e-8)
    assert three[2] < 1e-9
    nothing = MGDA(["a", "b"], normalize=normalize).weigh(torch.zeros(2), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(nothing, torch.full((2,), 0.5))
