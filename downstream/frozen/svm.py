"""One-vs-rest linear SVMs on frozen features: the VOC 2007 protocols of the thesis and of VISSL."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polyscene.runtime.errors import UserError

PAPER_COST = 0.5
"""C of the thesis' VOC SVM (tables 7.4, 7.7 and 7.9)."""

VISSL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
"""The 11 values among which VISSL chooses C (its ResNet configuration for VOC 2007)."""

_PARALLEL_CELLS = 5e7  # feature values read by all fits, from which starting processes pays


@dataclass(frozen=True)
class SvmResult:
    """One SVM a class.

    Attributes:
        decisions: (M, K) float64 signed distances of the test features; NaN for a class without SVM.
        costs: (K,) float64 C of each class; NaN for a class without SVM.
        unfinished: classes whose solver stopped at ``max_iter``, as numbers.
    """

    decisions: np.ndarray
    costs: np.ndarray
    unfinished: list[int]


def trainable_classes(targets: np.ndarray) -> np.ndarray:
    """(K,) bool: the classes with a positive and a negative among (N, K) targets of 1, -1 and 0 (to be ignored)."""
    return (targets == 1).any(axis=0) & (targets == -1).any(axis=0)


def svm_probe(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    *,
    class_names: Sequence[str],
    costs: Sequence[float] = (PAPER_COST,),
    folds: int = 3,
    max_iter: int = 2000,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> SvmResult:
    """Fit ``LinearSVC`` (squared hinge, L2, dual, tolerance 1e-4, positives weigh 2) of every class against the rest.

    With one cost this is the thesis' protocol. With several, each class takes the one of the highest mean average
    precision over stratified folds of the training features, the smallest where equal, as VISSL does.

    Args:
        train: (N, C) L2-normalised features.
        targets: (N, K) 1 (has the class), -1 (has not) or 0 (left out for this class).
        test: (M, C) L2-normalised features.
        class_names: (K,) for the errors.
        costs: values of C.
        folds: of the cross-validation.
        max_iter: passes of the solver at most.
        seed: of the solver's order of images.
        jobs: processes that share the classes.
        progress: called with the number of classes done.

    Returns:
        The same for any number of jobs.

    Raises:
        UserError: no class has both positives and negatives; one has too few of either for the folds.
    """
    chosen = np.flatnonzero(trainable_classes(targets))
    if not len(chosen):
        raise UserError("no class has images with it and images without it; an SVM needs both")
    costs = sorted(costs)
    if len(costs) > 1:
        _check_folds(targets[:, chosen], [class_names[number] for number in chosen], folds)
    # liblinear works in float64; converting once spares it a copy a fit.
    train, test = np.ascontiguousarray(train, dtype=np.float64), np.ascontiguousarray(test, dtype=np.float64)
    fits = len(chosen) * (1 if len(costs) == 1 else len(costs) * folds + 1)
    jobs = min(jobs, len(chosen)) if train.size * fits > _PARALLEL_CELLS else 1
    decisions = np.full((len(test), targets.shape[1]), np.nan)
    best = np.full(targets.shape[1], np.nan)
    unfinished = []
    options = {"costs": costs, "folds": folds, "max_iter": max_iter, "seed": seed}
    for done, (number, (weight, bias, cost, finished)) in enumerate(
        zip(chosen, _fit_all(train, targets[:, chosen], jobs, options)), start=1
    ):
        decisions[:, number], best[number] = test @ weight + bias, cost
        if not finished:
            unfinished.append(int(number))
        if progress is not None:
            progress(done)
    return SvmResult(decisions, best, unfinished)


def _fit_all(train: np.ndarray, targets: np.ndarray, jobs: int, options: dict):
    if jobs <= 1:
        return (_fit_class(train, column, **options) for column in targets.T)
    from joblib import Parallel, delayed

    # Processes, not threads: liblinear draws from one random state per process.
    parallel = Parallel(n_jobs=jobs, return_as="generator", mmap_mode="r")
    return parallel(delayed(_fit_class)(train, column, **options) for column in targets.T)


def _fit_class(
    features: np.ndarray, column: np.ndarray, *, costs: Sequence[float], folds: int, max_iter: int, seed: int
) -> tuple[np.ndarray, float, float, bool]:
    """Weight (C,), bias, C, and whether the solver finished, of one class against the rest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import LinearSVC

    def machine(cost: float) -> LinearSVC:
        return LinearSVC(
            C=cost,
            class_weight={1: 2, -1: 1},
            loss="squared_hinge",
            penalty="l2",
            dual=True,
            tol=1e-4,
            max_iter=max_iter,
            intercept_scaling=1.0,
            random_state=seed,
        )

    judged = column != 0
    if not judged.all():
        features, column = features[judged], column[judged]
    column = column.astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `unfinished`
        cost = costs[0]
        if len(costs) > 1:
            split = StratifiedKFold(folds)
            scores = [
                cross_val_score(machine(c), features, column, cv=split, scoring="average_precision").mean()
                for c in costs
            ]
            cost = costs[int(np.argmax(scores))]
        fitted = machine(cost).fit(features, column)
    return fitted.coef_[0], float(fitted.intercept_[0]), float(cost), int(np.max(fitted.n_iter_)) < max_iter


def _check_folds(targets: np.ndarray, class_names: Sequence[str], folds: int) -> None:
    for value, words in ((1, "with"), (-1, "without")):
        counts = (targets == value).sum(axis=0)
        rarest = int(counts.argmin())
        if counts[rarest] < folds:
            raise UserError(
                f"{counts[rarest]} training image(s) {words} the class '{class_names[rarest]}' cannot be split into "
                f"svm.folds={folds}; use svm.variant=paper, which needs no folds"
            )
