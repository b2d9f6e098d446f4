"""Delta_MTL against the tables of the papers."""

import pytest

from polyscene.downstream.multitask.metrics.delta import delta_mtl, task_changes

BETTER = {"edges": "higher", "segmentation": "higher", "parts": "higher", "normals": "lower", "saliency": "higher"}
SINGLE = {"edges": 71.88, "segmentation": 66.22, "parts": 59.69, "normals": 13.64, "saliency": 66.62}


def test_rcm_paper_pascal():
    rcm = {"edges": 71.34, "segmentation": 65.70, "parts": 58.12, "normals": 13.70, "saliency": 66.38}
    assert 100 * delta_mtl(rcm, SINGLE, BETTER) == pytest.approx(-0.99, abs=0.005)  # printed as a drop of 0.99


def test_mti_net_nyud():
    change = delta_mtl(
        {"segmentation": 0.3512, "depth": 0.620},
        {"segmentation": 0.3318, "depth": 0.667},
        {"segmentation": "higher", "depth": "lower"},
    )
    assert 100 * change == pytest.approx(6.40, abs=0.1)  # the table's inputs are rounded


def test_signs():
    single = {"a": 0.5, "b": 2.0, "unused": 1.0}
    better = {"a": "higher", "b": "lower"}
    assert task_changes({"a": 0.6, "b": 2.5}, single, better) == pytest.approx({"a": 0.2, "b": -0.25})
    assert delta_mtl({"a": 0.6, "b": 2.5}, single, better) == pytest.approx(-0.025)
    assert delta_mtl({"b": 1.0}, single, better) == pytest.approx(0.5)
    assert delta_mtl({"a": 0.5, "b": 2.0}, single, better) == 0


@pytest.mark.parametrize(
    ("model", "single", "better", "message"),
    [
        ({}, {}, {}, "at least one task"),
        ({"a": 1.0}, {}, {"a": "higher"}, "no single-task result of 'a'"),
        ({"a": 1.0}, {"a": 1.0}, {}, "needs a direction"),
        ({"a": 1.0}, {"a": 0.0}, {"a": "higher"}, "above 0"),
        ({"a": 1.0}, {"a": float("nan")}, {"a": "higher"}, "above 0"),
    ],
)
def test_bad_input(model, single, better, message):
    with pytest.raises(ValueError, match=message):
        delta_mtl(model, single, better)
