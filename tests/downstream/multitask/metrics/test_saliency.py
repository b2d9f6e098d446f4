"""Saliency protocols by brute force, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import fbeta_score, jaccard_score

from polyscene.downstream.multitask.metrics.saliency import SaliencyMetric


def images():
    generator = torch.Generator().manual_seed(1)
    for count in range(4):
        values = (torch.rand(1, 15, 12, generator=generator) > 0.3 + 0.2 * count).float()
        noise = torch.rand(15, 12, generator=generator)
        yield 0.4 * values[0] + 0.6 * noise, values, torch.rand(15, 12, generator=generator) > 0.1


@pytest.mark.parametrize("protocol", ["rcm", "survey"])
def test_mean_image_iou_at_the_best_threshold(protocol):
    metric = SaliencyMetric(protocol)
    thresholds = np.linspace(0.2, 0.9, 15)
    scores = []
    for prediction, values, valid in images():
        metric.update(prediction, values, valid)
        truth, probability = values[0][valid].numpy() > 0.5, prediction[valid].double().numpy()
        scores.append([jaccard_score(truth, probability > threshold, zero_division=1.0) for threshold in thresholds])
    means = np.mean(scores, axis=0)
    assert metric.compute() == pytest.approx({"iou": means.max(), "threshold": thresholds[means.argmax()]})


def test_data_set_f_measure():
    metric = SaliencyMetric("atrc")
    truths, probabilities = [], []
    for prediction, values, valid in images():
        metric.update(prediction, values, valid)
        truths.append(values[0][valid].numpy() > 0.5)
        probabilities.append(prediction[valid].double().numpy())
    truth, probability = np.concatenate(truths), np.concatenate(probabilities)
    thresholds = np.arange(1, 20) / 20
    scores = [fbeta_score(truth, probability >= threshold, beta=0.3**0.5, zero_division=0) for threshold in thresholds]
    assert metric.compute() == pytest.approx({"max_f": max(scores), "threshold": thresholds[np.argmax(scores)]})


def test_by_hand():
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    metric = SaliencyMetric("rcm")
    metric.update(torch.zeros(1, 4), torch.zeros(1, 1, 4), everywhere)  # neither has any foreground: 1
    assert metric.compute() == {"iou": 1.0, "threshold": pytest.approx(0.2)}
    # Above .3 exactly the true pixels are left; below, three of which two are right.
    metric.update(torch.tensor([[0.95, 0.95, 0.28, 0.1]]), torch.tensor([[[1.0, 1.0, 0, 0]]]), everywhere)
    assert metric.compute() == {"iou": 1.0, "threshold": pytest.approx(0.3)}
    # Nothing is found: 0 at every threshold; the mean over three images is 2/3.
    metric.update(torch.full((1, 4), 0.1), torch.ones(1, 1, 4), everywhere)
    assert metric.compute()["iou"] == pytest.approx(2 / 3)
    # An image without a valid pixel is no image.
    metric.update(torch.ones(1, 4), torch.zeros(1, 1, 4), ~everywhere)
    assert metric.compute()["iou"] == pytest.approx(2 / 3)


def test_at_the_threshold():
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    values = torch.ones(1, 1, 1)
    at = torch.tensor([[0.5]], dtype=torch.float64)
    strict, weak = SaliencyMetric("survey"), SaliencyMetric("atrc")
    strict.update(at, values, everywhere)
    weak.update(at, values, everywhere)
    assert strict.sums["iou"].tolist() == [1.0] * 6 + [0.0] * 9  # .2 to .45, not .5
    assert weak.sums["hits"].tolist() == [1] * 10 + [0] * 9  # .05 to .5


def test_unknown_protocol():
    with pytest.raises(ValueError, match="rcm, survey, atrc"):
        SaliencyMetric("other")
