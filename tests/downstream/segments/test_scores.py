"""Confusion, intersection over union and the expectation of guessing, by hand."""

import numpy as np
import pytest

from polyscene.downstream.segments.regions import label_histograms
from polyscene.downstream.segments.scores import (
    class_iou,
    guessing_confusion,
    mean_iou,
    pixel_accuracy,
    region_confusion,
)

# Three classes and void (3). Region 0 holds 6 pixels of class 0 and 2 of class 1; region 1 is void apart from one.
HISTOGRAMS = np.array([[6, 2, 0, 0], [0, 1, 0, 9], [0, 1, 4, 5]])
NOTHING = np.zeros(4, dtype=np.int64)


def test_hand_computed_confusion_and_iou():
    confusion = region_confusion(HISTOGRAMS, np.array([0, 0, 2]), NOTHING)
    assert confusion.tolist() == [[6, 0, 0], [3, 0, 1], [0, 0, 4]]
    iou = class_iou(confusion)
    assert iou.tolist() == pytest.approx([6 / 9, 0, 4 / 5])
    assert mean_iou(iou) == pytest.approx((6 / 9 + 0 + 4 / 5) / 3)
    assert mean_iou(iou, (1, 2)) == pytest.approx(0.4)
    assert pixel_accuracy(confusion) == pytest.approx(10 / 14)


def test_absent_classes_are_left_out_and_wrongly_predicted_ones_count():
    present = np.array([[5, 0, 0, 0], [5, 0, 0, 0]])
    right = class_iou(region_confusion(present, np.array([0, 0]), NOTHING))
    assert right[0] == 1
    assert np.isnan(right[1:]).all()
    assert mean_iou(right) == 1
    assert mean_iou(right, (1, 2)) is None
    wrong = class_iou(region_confusion(present, np.array([0, 2]), NOTHING))
    assert mean_iou(wrong) == pytest.approx((0.5 + 0) / 2)


def test_pixels_outside_all_regions_are_background():
    rest = np.array([10, 4, 0, 7])
    confusion = region_confusion(HISTOGRAMS[:1], np.array([1]), rest, background=0)
    assert confusion.tolist() == [[10, 6, 0], [4, 2, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="background"):
        region_confusion(HISTOGRAMS[:1], np.array([1]), rest)


def test_regions_count_like_pixels():
    generator = np.random.default_rng(0)
    area, labels = generator.integers(0, 6, (40, 30)), generator.integers(0, 5, (40, 30))  # label 4 is void
    given = np.array([0, 3, 3, 1, 2, 0])
    confusion = region_confusion(label_histograms(area, labels, 6, 4), given, np.zeros(5, dtype=np.int64))
    expected = np.zeros((4, 4), dtype=int)
    for truth, guess in zip(labels.ravel(), given[area].ravel()):
        if truth < 4:
            expected[truth, guess] += 1
    assert (confusion == expected).all()


def test_expectation_of_guessing_is_the_mean_of_many_guesses():
    generator = np.random.default_rng(0)
    bank = np.array([0, 0, 1, 2])
    rest = np.array([3, 0, 1, 0])
    draws = [region_confusion(HISTOGRAMS, bank[generator.integers(0, 4, 3)], rest, 0) for _ in range(4000)]
    expected = guessing_confusion(HISTOGRAMS, bank, rest, 0)
    assert np.abs(np.mean(draws, axis=0) - expected).max() < 0.15
    assert expected.sum() == pytest.approx(HISTOGRAMS[:, :3].sum() + 4)
