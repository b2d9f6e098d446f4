"""Normals: angles against NumPy and by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from polyscene.downstream.multitask.metrics.normals import BIN, NormalsMetric, angles_between


def rotated(degrees):
    """(3, 1, N) vectors at these angles from the z axis."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[:, None]


def up(count):
    return rotated([0.0] * count)


def test_against_numpy():
    generator = torch.Generator().manual_seed(0)
    metric = NormalsMetric()
    angles = []
    for size in ((20, 31), (7, 12)):
        values = normalize(torch.randn(3, *size, generator=generator), dim=0)
        prediction = normalize(values + 0.4 * torch.randn(3, *size, generator=generator), dim=0)
        valid = torch.rand(size, generator=generator) > 0.3
        metric.update(prediction, values, valid)
        cosine = (prediction * values).sum(0)[valid].double().numpy()
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    pooled = np.concatenate(angles)
    result = metric.compute()
    assert result["mean"] == pytest.approx(pooled.mean(), abs=1e-4)
    assert result["rmse"] == pytest.approx(np.sqrt((pooled**2).mean()), abs=1e-4)
    assert result["median"] == pytest.approx(np.median(pooled), abs=BIN)
    for key, limit in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30)):
        assert result[key] == pytest.approx((pooled < limit).mean())


def test_by_hand():
    metric = NormalsMetric()
    metric.update(rotated([5.0, 20.0, 25.0, 90.0, 50.0]), up(5), torch.tensor([[True, True, True, True, False]]))
    result = metric.compute()
    assert result["mean"] == pytest.approx(35)
    assert result["median"] == pytest.approx(22.5, abs=BIN)
    assert result["rmse"] == pytest.approx(math.sqrt((25 + 400 + 625 + 8100) / 4))
    assert [result[key] for key in ("within_11_25", "within_22_5", "within_30")] == [0.25, 0.5, 0.75]
    metric.update(rotated([60.0]), up(1), torch.ones(1, 1, dtype=torch.bool))
    assert metric.compute()["median"] == pytest.approx(25, abs=BIN)


def test_small_and_straight_angles_are_exact():
    angles = angles_between(rotated([1e-5, 0.0, 180.0])[:, 0], up(3)[:, 0])
    assert angles.tolist() == pytest.approx([1e-5, 0, 180], rel=1e-9)


def test_vectors_without_direction():
    metric = NormalsMetric()
    nothing = torch.zeros(3, 1, 1)
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    metric.update(nothing, up(1), everywhere)
    assert metric.compute()["mean"] == 90
    metric.update(up(1), nothing, everywhere)
    assert metric.compute()["mean"] == 90
    assert int(metric.sums["histogram"].sum()) == 1


def test_length_does_not_matter():
    metric = NormalsMetric()
    metric.update(rotated([30.0]) * 7, up(1) * 0.1, torch.ones(1, 1, dtype=torch.bool))
    assert metric.compute()["mean"] == pytest.approx(30)
