"""Learning rates of multi-task training."""

import pytest

from polyscene.downstream.multitask.schedule import Schedule, poly_rate


def test_per_iteration():
    rates = [poly_rate(step, base=0.005, total_steps=10) for step in range(10)]
    assert rates == pytest.approx([0.005 * (1 - step / 10) ** 0.9 for step in range(10)])


def test_per_epoch():
    """MTI-Net: lr * (1 - epoch / epochs) ** 0.9, constant within an epoch."""
    rates = [poly_rate(step, base=1e-4, total_steps=12, every=4) for step in range(12)]
    assert rates == pytest.approx([1e-4 * (1 - epoch / 3) ** 0.9 for epoch in range(3) for _ in range(4)])


@pytest.mark.parametrize(
    ("kind", "expected"), [("iteration", 0.1 * 0.5**0.9), ("epoch", 0.1 * (2 / 3) ** 0.9), ("constant", 0.1)]
)
def test_kinds(kind, expected):
    plan = Schedule(steps_per_epoch=4, end_step=12, total_steps=12, learning_rate=0.1, kind=kind)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(6) == pytest.approx(expected)


def test_another_kind():
    with pytest.raises(ValueError, match="cosine"):
        Schedule(steps_per_epoch=4, end_step=12, total_steps=12, learning_rate=0.1, kind="cosine")
