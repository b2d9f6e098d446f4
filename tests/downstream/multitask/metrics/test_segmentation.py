"""Mean IoU against torchmetrics, scikit-learn and by hand."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from polyscene.downstream.multitask.metrics.segmentation import PARTS_CLASSES, SegmentationMetric


def random_images(classes, count=3):
    generator = torch.Generator().manual_seed(0)
    size = (17, 23)
    for _ in range(count):
        values = torch.randint(0, classes, size, generator=generator)
        wrong = torch.rand(size, generator=generator) < 0.4
        prediction = torch.where(wrong, torch.randint(0, classes, size, generator=generator), values)
        yield prediction, values, torch.rand(size, generator=generator) > 0.2


def test_against_torchmetrics_and_scikit_learn():
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = SegmentationMetric(PARTS_CLASSES)
    jaccard = {
        average: torchmetrics.JaccardIndex("multiclass", num_classes=PARTS_CLASSES, ignore_index=255, average=average)
        for average in ("macro", "none")
    }
    truths, guesses = [], []
    for prediction, values, valid in random_images(PARTS_CLASSES):
        metric.update(prediction, values, valid)
        for reference in jaccard.values():
            reference.update(prediction, values.masked_fill(~valid, 255))
        truths.append(values[valid])
        guesses.append(prediction[valid])
    truth, guess = torch.cat(truths).numpy(), torch.cat(guesses).numpy()
    result = metric.compute()
    assert result["miou"] == pytest.approx(float(jaccard["macro"].compute()), abs=1e-6)
    assert result["miou"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert metric.class_iou() == pytest.approx(jaccard["none"].compute().tolist(), abs=1e-6)
    assert metric.class_iou() == pytest.approx(jaccard_score(truth, guess, average=None).tolist())


def test_counts_are_pooled_over_the_set_and_void_is_left_out():
    metric = SegmentationMetric(3)
    valid = torch.tensor([[True, True, True, False]])
    # Class 0: 2 hits of 3; class 1: 1 of 2; the void pixel holds a label that is no class.
    metric.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 255]]), valid)
    metric.update(
        torch.tensor([[0, 2, 0, 0]]), torch.tensor([[0, 2, 9, 9]]), torch.tensor([[True, True, False, False]])
    )
    assert metric.class_iou() == pytest.approx([2 / 3, 1 / 2, 1])
    assert metric.compute()["miou"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metric.compute()["pixel_accuracy"] == pytest.approx(4 / 5)


def test_a_class_that_never_occurs_has_no_part_in_the_mean():
    metric = SegmentationMetric(4)
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), everywhere)
    iou = metric.class_iou()
    assert iou[:2] == [0.5, 0.0]
    assert all(math.isnan(value) for value in iou[2:])
    assert metric.compute()["miou"] == 0.25


@pytest.mark.parametrize(("guess", "truth", "name"), [(4, 0, "prediction"), (0, 255, "values"), (-1, 0, "prediction")])
def test_labels_beyond_the_classes_are_refused(guess, truth, name):
    pixel = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{name} of valid pixels must be classes 0 to 3"):
        SegmentationMetric(4).update(torch.tensor([[guess]]), torch.tensor([[truth]]), pixel)
