"""Accuracy of images against scikit-learn and by hand."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from polyscene.downstream.multitask.metrics.classification import ClassificationMetric

CLASSES = 5


def labels(count=200):
    """Images of four of five classes, most of them found; some have no label."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, CLASSES - 1, (count,), generator=generator)
    guess = torch.where(
        torch.rand(count, generator=generator) < 0.4, torch.randint(0, CLASSES, (count,), generator=generator), truth
    )
    return guess, truth, torch.rand(count, generator=generator) > 0.2


def add(metric, guess, truth, valid):
    for image in zip(guess, truth, valid):
        metric.update(*(value.view(1, 1) for value in image))


def test_against_scikit_learn():
    guess, truth, valid = labels()
    metric = ClassificationMetric(CLASSES)
    add(metric, guess, truth, valid)
    found, kept = metric.compute(), (truth[valid].numpy(), guess[valid].numpy())
    assert found["accuracy"] == pytest.approx(accuracy_score(*kept))
    with pytest.warns(UserWarning, match="not in y_true"):
        assert found["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(*kept))
    of_classes = metric.class_accuracy()
    assert of_classes[:-1] == pytest.approx(recall_score(*kept, average=None, labels=range(CLASSES - 1)))
    assert math.isnan(of_classes[-1])


def test_shards_merged_are_one_pass():
    guess, truth, valid = labels()
    whole, first, second = (ClassificationMetric(CLASSES) for _ in range(3))
    add(whole, guess, truth, valid)
    add(first, guess[:70], truth[:70], valid[:70])
    add(second, guess[70:], truth[70:], valid[70:])
    restored = ClassificationMetric(CLASSES)
    restored.load_state(first.state())
    restored.merge(second)
    assert torch.equal(restored.sums["confusion"], whole.sums["confusion"])
    assert restored.compute() == whole.compute()


def test_without_labels_there_is_no_accuracy():
    metric = ClassificationMetric(2)
    metric.update(torch.tensor([[1]]), torch.tensor([[9]]), torch.tensor([[False]]))
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("guess", "truth", "size", "words"),
    [(2, 0, (1, 1), "classes must be 0 to 1"), (0, -1, (1, 1), "not -1"), (0, 0, (2, 3), "not a map of")],
)
def test_what_is_no_class_of_an_image_is_refused(guess, truth, size, words):
    with pytest.raises(ValueError, match=words):
        ClassificationMetric(2).update(
            torch.full(size, guess), torch.full(size, truth), torch.ones(size, dtype=torch.bool)
        )
