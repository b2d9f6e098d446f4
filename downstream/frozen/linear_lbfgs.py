"""Linear probe by L-BFGS: multinomial logistic regression on cached features, its L2 strength chosen on held-out ones.

The protocol of Kornblith et al. (2019, section 3), SimCLR (appendix B.8) and CLIP (appendix A.3): 45 log-spaced
strengths from 1e-6 to 1e5, the best of which on held-out training images is refitted on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.knn import accuracy

STRENGTHS = tuple(float(s) for s in np.logspace(-6, 5, 45))
"""The 45 strengths of the protocol."""

MAX_ITERATIONS = 1000
"""L-BFGS iterations a strength, as in CLIP's probe."""

_MEMORY = 20  # gradient pairs that L-BFGS keeps
_CELLS = 2**24  # logits held at once


@dataclass(frozen=True)
class LinearResult:
    """A linear probe.

    Attributes:
        accuracy: on the test features, in [0, 1].
        predictions: (M,) int64 classes of the test features.
        strength: the chosen L2 strength.
        sweep: (strength, held-out accuracy), from the strongest to the weakest; empty where nothing was chosen.
        weight: (classes, C) float32.
        bias: (classes,) float32.
    """

    accuracy: float
    predictions: Tensor
    strength: float
    sweep: list[tuple[float, float]]
    weight: Tensor
    bias: Tensor


def lbfgs_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    strengths: Sequence[float] | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> LinearResult:
    """Choose the L2 strength on a stratified held-out part of the training features, then fit all of them with it.

    Minimises ``sum_i cross_entropy_i + strength / 2 * ||weight||^2``, the intercept unpenalised: the objective of
    scikit-learn's ``LogisticRegression(C=1 / strength)``. Features are used as given (neither centred nor scaled).
    Of equally good strengths the strongest is taken.

    Args:
        train: (N, C) features.
        train_labels: (N,) int64 in 0..classes-1.
        test: (M, C) features.
        test_labels: (M,) int64.
        classes: number of classes.
        strengths: L2 strengths to choose from; None: `STRENGTHS`. A single one is used without a choice.
        holdout: share of every class's training features that is held out to choose, in (0, 1).
        seed: of the held-out part.
        device: where to compute.
        progress: called with the number of strengths tried; the final fit comes after the last call.

    Raises:
        UserError: a class without training features, one class only, features that are not finite, strengths that are
            not positive, or ``holdout`` outside (0, 1).
    """
    strengths = sorted(STRENGTHS if strengths is None else strengths, reverse=True)
    _check(train, train_labels, classes, strengths)
    sweep: list[tuple[float, float]] = []
    start, strength = None, strengths[0]
    if len(strengths) > 1:
        fitted, held_out = stratified_holdout(train_labels, holdout, seed)
        problem = _Problem(train[fitted], train_labels[fitted], classes, device)
        for done, candidate in enumerate(strengths, start=1):
            # Every solution starts the search for the next: neighbours on the path are close.
            weight, bias = problem.fit(candidate, *(start or ()))
            start = (weight, bias)
            sweep.append((candidate, accuracy(_predict(train[held_out], weight, bias), train_labels[held_out].cpu())))
            if sweep[-1][1] > max((score for _, score in sweep[:-1]), default=-1.0):
                strength, best_start = candidate, start
            if progress is not None:
                progress(done)
        start = best_start
        del problem
    weight, bias = _Problem(train, train_labels, classes, device).fit(strength, *(start or ()))
    if len(strengths) == 1 and progress is not None:
        progress(1)
    predictions = _predict(test, weight, bias)
    return LinearResult(
        accuracy(predictions, test_labels.cpu()), predictions, strength, sweep, weight.cpu(), bias.cpu()
    )


def fit_logistic(
    features: Tensor, labels: Tensor, *, classes: int, strength: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One fit of the objective of `lbfgs_probe`, from zero: weight (classes, C) and bias (classes,) on ``device``."""
    _check(features, labels, classes, [strength])
    return _Problem(features, labels, classes, device).fit(strength)


def logistic_loss(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float) -> float:
    """``sum_i cross_entropy_i + strength / 2 * ||weight||^2`` in float64.

    Args:
        features: (N, C).
        labels: (N,) int64.
        weight: (classes, C).
        bias: (classes,).
        strength: of the L2 penalty.
    """
    logits = features.double() @ weight.double().T + bias.double()
    penalty = 0.5 * strength * weight.double().square().sum()
    return float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + penalty)


def stratified_holdout(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions so that every class loses ``share`` of its members, rounded, but never its last one.

    Args:
        labels: (N,) int64.
        share: held out, in (0, 1).
        seed: of the draw.

    Returns:
        Sorted positions that remain, and those held out; int64.

    Raises:
        UserError: ``share`` outside (0, 1), or too small to hold out anything.
    """
    if not 0 < share < 1:
        raise UserError(f"holdout={share} must lie between 0 and 1: it is the share that chooses the L2 strength")
    generator = np.random.default_rng(seed)
    numbers = labels.cpu().numpy()
    taken = np.zeros(len(numbers), dtype=bool)
    for number in np.unique(numbers):
        members = generator.permutation(np.flatnonzero(numbers == number))
        taken[members[: min(round(share * len(members)), len(members) - 1)]] = True
    if not taken.any():
        raise UserError(f"holdout={share} of {len(numbers)} images holds out none; use a larger share or more images")
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))


class _Problem:
    """The fit of one set of features for any number of strengths.

    L-BFGS runs in coordinates in which the problem is nearly round: features are centred (the unpenalised intercept
    takes it up) and turned to their principal axes, and each axis is scaled by the square root of its curvature,
    ``h * variance + strength / N``, where h is the mean of p (1 - p) at the starting point. That changes the path, not
    the minimum. Frozen features need it: their variances span many orders of magnitude.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, device: torch.device):
        features = features.to(device, torch.float32)
        self.labels, self.classes, self.count = labels.to(device), classes, features.shape[0]
        self.mean = features.double().mean(dim=0).float()
        centred = features - self.mean
        covariance = (centred.T @ centred).double() / self.count
        variances, axes = torch.linalg.eigh(covariance)
        self.variances = variances.clamp_min(0).float()
        self.axes = axes.float()  # (C, C), a column an axis
        self.turned = centred @ self.axes  # (N, C)

    @torch.no_grad()
    def fit(self, strength: float, weight: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight (classes, C) and bias (classes,) of the minimum, searched from the given ones."""
        from scipy.optimize import minimize

        device, shape = self.turned.device, (self.classes, self.turned.shape[1])
        if weight is None or bias is None:
            weight, bias = torch.zeros(shape, device=device), torch.zeros(shape[0], device=device)
        begin = torch.cat([weight @ self.axes, (bias + weight @ self.mean)[:, None]], dim=1)
        curvature = self._curvature(begin)
        ridge = strength / self.count
        # The floor keeps axes without variance and without penalty in the range of float32.
        steepness = torch.cat([curvature * self.variances + ridge, self.variances.new_full((1,), curvature)])
        scale = steepness.clamp_min(1e-12).rsqrt()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.from_numpy(flat).to(device, torch.float32).view_as(begin)
            loss, gradient = self._loss(parameters * scale, ridge)
            # The sum over images, not the mean: scipy compares a relative change only where the loss exceeds one.
            return self.count * loss, self.count * (gradient * scale).flatten().double().cpu().numpy()

        # Finer tolerances only chase the rounding of float32.
        options = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "maxcor": _MEMORY}
        options |= {"ftol": 1e-7, "gtol": 1e-3, "maxls": 10}
        flat = (begin / scale).flatten().double().cpu().numpy()
        found = minimize(objective, flat, jac=True, method="L-BFGS-B", options=options)
        parameters = torch.from_numpy(found.x).to(device, torch.float32).view_as(begin) * scale
        weight = parameters[:, :-1] @ self.axes.T
        return weight, parameters[:, -1] - weight @ self.mean

    def _loss(self, parameters: Tensor, ridge: float) -> tuple[float, Tensor]:
        """Mean cross-entropy + ridge / 2 ||weight||^2 and its gradient.

        Parameters and gradient are (classes, C + 1): the weights on the turned axes, then the intercept.
        """
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = 0.5 * ridge * weight.double().square().sum()
        slope, bias_slope = ridge * weight, torch.zeros_like(bias)
        rows = max(1, _CELLS // self.classes)
        for features, labels in zip(self.turned.split(rows), self.labels[:, None].split(rows)):
            logs = torch.log_softmax(torch.addmm(bias, features, weight.T), dim=1)
            loss = loss - logs.gather(1, labels).sum(dtype=torch.float64) / self.count
            errors = logs.exp_().scatter_add_(1, labels, torch.full_like(labels, -1, dtype=logs.dtype))
            slope = torch.addmm(slope, errors.T, features, alpha=1 / self.count)
            bias_slope += errors.sum(dim=0) / self.count
        return float(loss), torch.cat([slope, bias_slope[:, None]], dim=1)

    def _curvature(self, parameters: Tensor) -> float:
        """Mean of p (1 - p) over classes and some 4,096 features, kept away from zero."""
        step = max(1, self.count // 4096)
        chances = torch.softmax(torch.addmm(parameters[:, -1], self.turned[::step], parameters[:, :-1].T), dim=1)
        return max(float((chances * (1 - chances)).mean()), 1e-6)


def _predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Classes (N,) int64 on the CPU."""
    parts = features.split(max(1, _CELLS // len(bias)))
    device = weight.device
    return torch.cat([(p.to(device, torch.float32) @ weight.T + bias).argmax(dim=1).cpu() for p in parts])


def _check(train: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> None:
    if classes < 2:
        raise UserError("a linear probe needs at least two classes, and the training images have one")
    if not strengths or not all(0 < s < float("inf") for s in strengths):
        raise UserError(f"L2 strengths {list(strengths)} must be positive numbers")
    if not torch.isfinite(train).all():
        raise UserError("the training features hold NaN or infinity; check the weights, or use precision=fp32")
    counts = torch.bincount(labels.cpu(), minlength=classes)
    if len(counts) > classes:
        raise UserError(f"label {len(counts) - 1} among {classes} classes; labels go from 0 to {classes - 1}")
    if (counts == 0).any():
        missing = int((counts == 0).nonzero()[0])
        raise UserError(f"class number {missing} has no training image; give it some, or leave the class out")
