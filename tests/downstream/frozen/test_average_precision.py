"""Average precisions against scikit-learn and against values computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from polyscene.downstream.frozen.average_precision import (
    average_precision,
    eleven_point_average_precision,
    interpolated_average_precision,
    precision_recall,
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_area_equals_scikit_learn(seed, ties):
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal(200)
    scores = scores.round(1) if ties else scores
    positive = generator.random(200) < 0.1 + 0.2 * (scores > 0)
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


def test_hand_computed_ranking():
    """Ranked + - + + - (and one - at the end): precisions at the positives 1, 2/3, 3/4 at recalls 1/3, 2/3, 1."""
    scores, positive = np.array([6, 5, 4, 3, 2, 1.0]), np.array([1, 0, 1, 1, 0, 0], bool)
    precision, recall = precision_recall(scores, positive)
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 1 / 2])
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1, 1])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # The envelope lifts 2/3 to the 3/4 that follows it.
    assert interpolated_average_precision(scores, positive) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    # Recalls 0 .. 0.3 see precision 1 (recall 1/3 >= 0.3), the other seven 3/4.
    assert eleven_point_average_precision(scores, positive) == pytest.approx((4 * 1 + 7 * 0.75) / 11)


def test_eleven_points_are_exact_where_recalls_are_tenths():
    """Ten positives, a negative after each: recall k/10 has precision k / (2k - 1), whatever 3/10 rounds to."""
    positive = np.tile([True, False], 10)
    scores = np.arange(20)[::-1].astype(float)
    expected = [1.0] + [max(j / (2 * j - 1) for j in range(k, 11)) for k in range(1, 11)]
    assert eleven_point_average_precision(scores, positive) == pytest.approx(np.mean(expected), abs=1e-15)


def test_perfect_and_reversed_rankings():
    positive = np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)
    up = np.arange(8.0)
    for measure in (average_precision, interpolated_average_precision, eleven_point_average_precision):
        assert measure(-up, positive) == 1.0
        assert measure(up, positive) < 0.3
    # Equal scores say nothing: the precision is the share of positives.
    assert average_precision(np.zeros(8), positive) == 0.25


def test_the_envelope_is_never_below_the_steps():
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, positive = generator.random(50), generator.random(50) < 0.3
        assert interpolated_average_precision(scores, positive) >= average_precision(scores, positive) - 1e-12


def test_no_positive_is_refused():
    with pytest.raises(ValueError, match="at least one positive"):
        average_precision(np.zeros(3), np.zeros(3, bool))
    with pytest.raises(ValueError, match="one length"):
        average_precision(np.zeros(3), np.zeros(4, bool))
