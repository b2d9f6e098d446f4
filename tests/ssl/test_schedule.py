"""Learning-rate schedule at known points."""

import itertools
import math

import pytest

from polyscene.ssl.schedule import cosine_schedule


def test_cosine_from_base_to_zero():
    rates = [cosine_schedule(s, base=0.3, total_steps=100) for s in range(101)]
    assert rates[0] == 0.3
    assert rates[50] == pytest.approx(0.15)
    assert rates[25] == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_warmup_is_linear_reaches_the_base_and_continues_with_the_cosine():
    rates = [cosine_schedule(s, base=1.0, total_steps=50, warmup_steps=10) for s in range(50)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert max(rates) == 1.0
