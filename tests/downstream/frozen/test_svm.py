"""One-vs-rest SVMs against scikit-learn and the SVM's own objective."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from polyscene.downstream.frozen import svm
from polyscene.downstream.frozen.svm import VISSL_COSTS, svm_probe, trainable_classes
from polyscene.runtime.errors import UserError


def problem(count=90, channels=12, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, channels))
    labels = np.arange(count) % classes
    x = centres[labels] + 1.5 * generator.standard_normal((count, channels))
    targets = np.where(labels[:, None] == np.arange(classes), 1, -1).astype(np.int8)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), targets


NAMES = ("a", "b", "c")


def test_paper_machine_minimises_the_weighted_squared_hinge():
    """min 0.5 |(w, b)|^2 + C sum_i c_i max(0, 1 - y_i f_i)^2 with c = 2 for positives: the gradient vanishes."""
    x, targets = problem()
    test = np.vstack([np.eye(12), np.zeros((1, 12))])  # decisions there are weight + bias, and bias
    result = svm_probe(x, targets, test, class_names=NAMES)
    for k in range(3):
        bias = result.decisions[-1, k]
        weight = result.decisions[:-1, k] - bias
        y = targets[:, k].astype(float)
        slack = np.maximum(0, 1 - y * (x @ weight + bias)) * np.where(y > 0, 2, 1)
        assert weight == pytest.approx(2 * 0.5 * (slack * y) @ x, abs=2e-3)
        assert bias == pytest.approx(2 * 0.5 * (slack * y).sum(), abs=2e-3)
    assert result.costs.tolist() == [0.5] * 3
    assert result.unfinished == []


def test_ignored_images_change_nothing():
    x, targets = problem()
    test, _ = problem(seed=1)
    extra = np.random.default_rng(5).standard_normal((20, 12)).astype(np.float32)
    ignored = np.full((20, 3), -1, np.int8)
    ignored[:, 0] = 0
    once = svm_probe(x, targets, test, class_names=NAMES)
    more = svm_probe(np.vstack([x, extra]), np.vstack([targets, ignored]), test, class_names=NAMES)
    assert np.array_equal(once.decisions[:, 0], more.decisions[:, 0])
    assert not np.array_equal(once.decisions[:, 1], more.decisions[:, 1])


def test_vissl_costs_are_chosen_as_a_grid_search_chooses():
    x, targets = problem(count=120)
    costs = VISSL_COSTS[:5]
    result = svm_probe(x, targets, x, class_names=NAMES, costs=costs)
    for k in range(3):
        machine = LinearSVC(class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)
        grid = GridSearchCV(machine, {"C": list(costs)}, scoring="average_precision", cv=StratifiedKFold(3))
        grid.fit(x.astype(float), targets[:, k].astype(int))
        assert result.costs[k] == grid.best_params_["C"]
        assert result.decisions[:, k] == pytest.approx(grid.decision_function(x.astype(float)))
    assert len(VISSL_COSTS) == 11


def test_any_number_of_processes_gives_the_same(monkeypatch):
    x, targets = problem()
    alone = svm_probe(x, targets, x, class_names=NAMES, seed=3)
    monkeypatch.setattr(svm, "_PARALLEL_CELLS", 0)
    done = []
    shared = svm_probe(x, targets, x, class_names=NAMES, seed=3, jobs=2, progress=done.append)
    assert np.array_equal(alone.decisions, shared.decisions)
    assert done == [1, 2, 3]


def test_a_class_without_positives_has_no_machine():
    x, targets = problem()
    targets[:, 1] = -1
    targets[:5, 1] = 0
    assert trainable_classes(targets).tolist() == [True, False, True]
    result = svm_probe(x, targets, x, class_names=NAMES)
    assert np.isnan(result.decisions[:, 1]).all()
    assert np.isnan(result.costs[1])
    assert np.isfinite(result.decisions[:, [0, 2]]).all()


def test_refusals():
    x, targets = problem()
    with pytest.raises(UserError, match="no class has images with it and images without it"):
        svm_probe(x, np.ones_like(targets), x, class_names=NAMES)
    targets[:, 2] = -1
    targets[:2, 2] = 1
    with pytest.raises(UserError, match=r"^2 training image\(s\) with the class 'c'.*svm.variant=paper"):
        svm_probe(x, targets, x, class_names=NAMES, costs=(0.1, 1.0))


def test_a_solver_that_stops_early_is_reported():
    x, targets = problem()
    assert svm_probe(x, targets, x, class_names=NAMES, costs=(1000.0,), max_iter=1).unfinished == [0, 1, 2]
