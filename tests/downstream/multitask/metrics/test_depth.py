"""Depth errors against torchmetrics, NumPy and by hand."""

import math

import numpy as np
import pytest
import torch

from polyscene.downstream.multitask.metrics.depth import DepthMetric


def images():
    generator = torch.Generator().manual_seed(2)
    for size in ((9, 14), (20, 11)):
        values = torch.rand(1, *size, generator=generator) * 9 + 0.7
        prediction = values[0] * (1 + 0.5 * torch.randn(size, generator=generator))
        yield prediction, values, torch.rand(size, generator=generator) > 0.3


@pytest.mark.parametrize("protocol", ["survey", "rcm"])
def test_against_torchmetrics_and_numpy(protocol):
    regression = pytest.importorskip("torchmetrics.regression")
    metric = DepthMetric(protocol)
    pooled = regression.MeanSquaredError(squared=False)
    relative = regression.MeanAbsolutePercentageError()
    per_image, factors = [], []
    for prediction, values, valid in images():
        metric.update(prediction, values, valid)
        guess, truth = prediction[valid].clamp(min=0), values[0][valid]
        pooled.update(guess, truth)
        relative.update(guess, truth)
        per_image.append(float(((guess - truth) ** 2).mean().sqrt()))
        with np.errstate(divide="ignore"):
            factors.append(np.maximum(guess.numpy() / truth.numpy(), truth.numpy() / guess.numpy()))
    result = metric.compute()
    assert result["rmse"] == pytest.approx(float(pooled.compute()) if protocol == "survey" else np.mean(per_image))
    assert result["abs_rel"] == pytest.approx(float(relative.compute()))
    for power in (1, 2, 3):
        assert result[f"delta{power}"] == pytest.approx((np.concatenate(factors) < 1.25**power).mean())


def test_the_protocols_differ_by_hand():
    expected = {"survey": math.sqrt((4 + 4 + 4 + 16) / 4), "rcm": (2 + 4) / 2}
    for protocol, rmse in expected.items():
        metric = DepthMetric(protocol)
        metric.update(torch.full((1, 4), 4.0), torch.full((1, 1, 4), 2.0), torch.tensor([[True, True, True, False]]))
        metric.update(torch.tensor([[6.0, 9.0]]), torch.tensor([[[2.0, 0.0]]]), torch.ones(1, 2, dtype=torch.bool))
        metric.update(torch.ones(1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))
        result = metric.compute()
        assert result["rmse"] == pytest.approx(rmse)
        assert result["abs_rel"] == pytest.approx((1 + 1 + 1 + 2) / 4)
        assert result["delta3"] == 0


def test_threshold_accuracies_by_hand():
    metric = DepthMetric("survey")
    metric.update(torch.tensor([[1.2, 1.5, 0.52, -1.0]]), torch.ones(1, 1, 4), torch.ones(1, 4, dtype=torch.bool))
    result = metric.compute()
    # 1 / .52 = 1.92 is below 1.25^3 = 1.95 only; behind the camera is never right, and as wrong as 0 m.
    assert [result[f"delta{power}"] for power in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert result["abs_rel"] == pytest.approx((0.2 + 0.5 + 0.48 + 1) / 4)


def test_unknown_protocol():
    with pytest.raises(ValueError, match="survey, rcm"):
        DepthMetric("atrc")
