"""L-BFGS logistic regression against scikit-learn, and the choice of its strength."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from polyscene.downstream.frozen.linear_lbfgs import (
    STRENGTHS,
    fit_logistic,
    lbfgs_probe,
    logistic_loss,
    stratified_holdout,
)
from polyscene.runtime.errors import UserError

CPU = torch.device("cpu")


def features(count, channels, classes, seed=0, noise=1.0):
    """L2-normalised, non-negative, with variances over three orders of magnitude, as pooled features are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -3, channels)
    centres = torch.randn(classes, channels, generator=torch.Generator().manual_seed(99)) * spread * 0.5
    labels = torch.arange(count) % classes
    x = centres[labels] + noise * torch.randn(count, channels, generator=generator) * spread
    x = (x + 0.2).relu()
    return x / x.norm(dim=1, keepdim=True), labels


MORE_IMAGES, MORE_CHANNELS = (600, 32, 5), (80, 128, 3)


@pytest.mark.parametrize(
    ("shape", "strength"),
    [
        *[(MORE_IMAGES, strength) for strength in (1e3, 10.0, 0.1, 1e-3, 1e-5)],
        *[(MORE_CHANNELS, strength) for strength in (1e3, 1.0, 1e-2, 1e-3)],
    ],
)
def test_reaches_the_loss_of_scikit_learn(shape, strength):
    count, channels, classes = shape
    x, y = features(count, channels, classes, noise=2.0)
    weight, bias = fit_logistic(x, y, classes=classes, strength=strength, device=CPU)
    oracle = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=20_000).fit(x.double().numpy(), y.numpy())
    expected = logistic_loss(x, y, torch.from_numpy(oracle.coef_), torch.from_numpy(oracle.intercept_), strength)
    assert logistic_loss(x, y, weight, bias, strength) == pytest.approx(expected, rel=1e-4)
    assert (x @ weight.T + bias).softmax(1) == pytest.approx(oracle.predict_proba(x.double().numpy()), abs=0.02)


def test_the_intercept_is_not_penalised():
    """At an overwhelming strength the weights vanish, and the intercepts alone give the class frequencies."""
    x, _ = features(400, 16, 2)
    y = (torch.arange(400) < 300).long()
    weight, bias = fit_logistic(x, y, classes=2, strength=1e9, device=CPU)
    assert weight.abs().max() < 1e-4
    assert bias.softmax(0).tolist() == pytest.approx([0.25, 0.75], abs=1e-4)


def test_loss_of_a_hand_computed_case():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    weight, bias = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2)
    expected = np.log(1 + np.exp(-2.0)) + np.log(1 + np.exp(-1.0)) + 0.5 * 3.0 * 5.0
    assert logistic_loss(x, y, weight, bias, 3.0) == pytest.approx(expected)


def test_the_probe_chooses_on_held_out_features_and_refits_on_all():
    x, y = features(300, 24, 4)
    test, test_labels = features(200, 24, 4, seed=1)
    calls = []
    result = lbfgs_probe(
        x, y, test, test_labels, classes=4, strengths=[1e-4, 1.0, 1e6], holdout=0.25, device=CPU, progress=calls.append
    )
    assert calls == [1, 2, 3]
    assert [strength for strength, _ in result.sweep] == [1e6, 1.0, 1e-4]
    best = max(score for _, score in result.sweep)
    assert result.strength == next(strength for strength, score in result.sweep if score == best)
    weight, bias = fit_logistic(x, y, classes=4, strength=result.strength, device=CPU)
    loss = logistic_loss(x, y, weight, bias, result.strength)
    assert logistic_loss(x, y, result.weight, result.bias, result.strength) == pytest.approx(loss, rel=1e-4)
    predictions = (test @ result.weight.T + result.bias).argmax(1)
    assert torch.equal(result.predictions, predictions)
    assert result.accuracy == pytest.approx((predictions == test_labels).float().mean().item())
    assert result.accuracy > 0.5


def test_held_out_scores_do_not_see_the_held_out_features():
    """Random labels cannot be predicted on features that were not fitted, however weak the penalty."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 300, generator=generator)
    y = torch.randint(0, 4, (400,), generator=generator)
    result = lbfgs_probe(x, y, x, y, classes=4, strengths=[1e-3, 1e-4], holdout=0.5, device=CPU)
    assert all(score < 0.4 for _, score in result.sweep)
    assert result.accuracy == 1.0


def test_equal_seeds_give_equal_probes():
    x, y = features(120, 16, 3)
    a, b = (lbfgs_probe(x, y, x, y, classes=3, strengths=[1.0, 0.1], holdout=0.2, seed=5, device=CPU) for _ in "ab")
    assert torch.equal(a.weight, b.weight)
    assert a.sweep == b.sweep


def test_the_default_strengths_are_those_of_the_protocol():
    assert len(STRENGTHS) == 45
    assert (STRENGTHS[0], STRENGTHS[-1]) == (1e-6, 1e5)
    steps = np.diff(np.log10(STRENGTHS))
    assert steps == pytest.approx(np.full(44, 0.25))


def test_the_split_is_stratified_and_keeps_one_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] + [3] * 2)
    kept, held_out = stratified_holdout(labels, 0.3, seed=0)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(33))
    assert labels[held_out].bincount(minlength=4).tolist() == [3, 6, 0, 1]
    assert not torch.equal(held_out, stratified_holdout(labels, 0.3, seed=1)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": [1.0, 0.0]}, "must be positive"),
        ({"holdout": 1.0, "strengths": [1.0, 2.0]}, "holdout=1.0"),
        ({"holdout": 1e-6, "strengths": [1.0, 2.0]}, "holds out none"),
        ({"classes": 1}, "at least two classes"),
        ({"classes": 5}, "class number 4 has no training image"),
        ({"classes": 3}, "label 3 among 3 classes"),
    ],
)
def test_bad_input_is_named(change, message):
    x, y = features(40, 8, 4)
    arguments = {"classes": 4, "holdout": 0.2, "device": CPU, **change}
    with pytest.raises(UserError, match=message):
        lbfgs_probe(x, y, x, y, **arguments)


def test_features_that_are_not_finite_are_refused():
    x, y = features(40, 8, 4)
    x[3, 2] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        lbfgs_probe(x, y, x, y, classes=4, holdout=0.2, device=CPU)
