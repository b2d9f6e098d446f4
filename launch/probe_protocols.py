"""The protocols of ``polyscene probe``: what one backbone's features are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyscene.downstream.frozen.accuracy import accuracy_by_class
from polyscene.downstream.frozen.average_precision import (
    average_precision,
    eleven_point_average_precision,
    interpolated_average_precision,
)
from polyscene.downstream.frozen.datasets import LabelledImages
from polyscene.downstream.frozen.images import LabelledPixels
from polyscene.downstream.frozen.knn import knn_probe
from polyscene.downstream.frozen.svm import VISSL_COSTS, svm_probe, trainable_classes
from polyscene.runtime.features import l2_normalise
from polyscene.runtime.knn import accuracy
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.run import RunDirectory

from .probe_config import ProbeConfig
from .probe_features import FrozenFeatures


@dataclass(frozen=True)
class Head:
    """A linear classifier: ``logits = features @ weight.T + bias``.

    Attributes:
        weight: (classes, C) float32.
        bias: (classes,) float32.
        features: ``l2_normalised`` or ``pooled``: what it was trained on.
    """

    weight: Tensor
    bias: Tensor
    features: str


@dataclass(frozen=True)
class Outcome:
    """What a protocol found for one backbone.

    Attributes:
        values: metric key -> value, a share.
        per_class: metric key -> class -> value.
        chance: metric key -> value of guessing.
        chosen: what the protocol chose by itself, for the record.
        head: of a linear probe.
    """

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    chance: dict[str, float]
    chosen: dict[str, Any] = field(default_factory=dict)
    head: Head | None = None


def measure_knn(
    config: ProbeConfig, features: FrozenFeatures, train: LabelledImages, test: LabelledImages, device: torch.device
) -> Outcome:
    """Accuracy of a weighted vote of the nearest training images."""
    bank, queries = l2_normalise(features.of("train", train.images)), l2_normalise(features.of("test", test.images))
    predictions = knn_probe(bank, train.targets, queries, k=config.k, temperature=config.temperature, device=device)
    return _classified("knn_accuracy", predictions, test)


def measure_linear(
    config: ProbeConfig,
    features: FrozenFeatures,
    train: LabelledImages,
    test: LabelledImages,
    device: torch.device,
    run: RunDirectory,
) -> Outcome:
    """Accuracy of a linear classifier, by the solver of the config."""
    solve = _lbfgs if config.linear.solver == "lbfgs" else _sgd
    predictions, head, chosen = solve(config, features, train, test, device, run)
    return _classified("linear_accuracy", predictions, test, chosen, head)


def measure_svm(
    config: ProbeConfig, features: FrozenFeatures, train: LabelledImages, test: LabelledImages, run: RunDirectory
) -> Outcome:
    """Mean average precisions of one-vs-rest SVMs, and where an image has one class, the accuracy of the best."""
    svm, names = config.svm, train.class_names
    targets, truth = train.one_vs_rest().numpy(), test.one_vs_rest().numpy()
    judged = judged_classes(train, test)
    left_out = [name for name, kept in zip(names, judged) if not kept]
    if left_out:
        run.warn(
            f"{len(left_out)} of {len(names)} classes have no positive or no negative training image, or no positive "
            f"test image, and are left out of the means: {', '.join(left_out)}"
        )
    learned, asked = l2_normalise(features.of("train", train.images)), l2_normalise(features.of("test", test.images))
    with ProgressBar(run.console, f"{features.subject.name}, SVMs", int(trainable_classes(targets).sum())) as bar:
        result = svm_probe(
            learned.numpy(),
            targets,
            asked.numpy(),
            class_names=names,
            costs=(svm.cost,) if svm.variant == "paper" else svm.costs or VISSL_COSTS,
            folds=svm.folds,
            seed=config.seed,
            jobs=config.workers,
            progress=bar.update,
        )
    if result.unfinished:
        run.log(f"{len(result.unfinished)} SVMs stopped at the protocol's 2,000 iterations")
    measures = {
        "map_area": average_precision,
        "map_interpolated": interpolated_average_precision,
        "map_11_point": eleven_point_average_precision,
    }
    columns = [(names[k], result.decisions[:, k], truth[:, k]) for k in np.flatnonzero(judged)]
    per_class = {
        key: {name: measure(scores[flags != 0], flags[flags != 0] == 1) for name, scores, flags in columns}
        for key, measure in measures.items()
    }
    values = {key: float(np.mean(list(classes.values()))) for key, classes in per_class.items()}
    # A ranking by chance has the share of positives as precision everywhere.
    chance = {"map_area": float(np.mean([(flags == 1).sum() / (flags != 0).sum() for _, _, flags in columns]))}
    if not test.multi_label:
        predictions = torch.from_numpy(np.nan_to_num(result.decisions, nan=-np.inf).argmax(axis=1))
        values["svm_accuracy"] = accuracy(predictions, test.targets)
        chance["svm_accuracy"] = 1 / len(names)
        per_class["svm_accuracy"] = accuracy_by_class(predictions, test.targets, names)
    costs = {name: float(cost) for name, cost in zip(names, result.costs) if np.isfinite(cost)}
    return Outcome(values, per_class, chance, {"costs": costs, "classes_left_out": left_out})


def judged_classes(train: LabelledImages, test: LabelledImages) -> np.ndarray:
    """(K,) bool: the classes that an SVM can learn and an average precision can judge."""
    return trainable_classes(train.one_vs_rest().numpy()) & (test.one_vs_rest() == 1).any(dim=0).numpy()


def _lbfgs(
    config: ProbeConfig,
    features: FrozenFeatures,
    train: LabelledImages,
    test: LabelledImages,
    device: torch.device,
    run: RunDirectory,
) -> tuple[Tensor, Head, dict[str, Any]]:
    from polyscene.downstream.frozen.linear_lbfgs import STRENGTHS, lbfgs_probe

    strengths = config.linear.strengths or STRENGTHS
    learned, asked = l2_normalise(features.of("train", train.images)), l2_normalise(features.of("test", test.images))
    with ProgressBar(run.console, f"{features.subject.name}, L2 strengths", len(strengths)) as bar:
        result = lbfgs_probe(
            learned,
            train.targets,
            asked,
            test.targets,
            classes=len(train.class_names),
            strengths=strengths,
            holdout=config.linear.holdout,
            seed=config.seed,
            device=device,
            progress=bar.update,
        )
    chosen = {"strength": result.strength, "sweep": [list(point) for point in result.sweep]}
    run.log(f"{features.subject.title}: L2 strength {result.strength:.3g}{_reason(result.sweep)}")
    return result.predictions, Head(result.weight, result.bias, "l2_normalised"), chosen


def _sgd(
    config: ProbeConfig,
    features: FrozenFeatures,
    train: LabelledImages,
    test: LabelledImages,
    device: torch.device,
    run: RunDirectory,
) -> tuple[Tensor, Head, dict[str, Any]]:
    from polyscene.downstream.frozen.linear_sgd import LEARNING_RATES, sgd_probe

    linear = config.linear
    asked = features.of("test", test.images)
    with ProgressBar(run.console, f"{features.subject.name}, epochs", linear.epochs) as bar:
        result = sgd_probe(
            features.of_crops,
            LabelledPixels(train.images, train.targets),
            asked,
            test.targets,
            classes=len(train.class_names),
            channels=asked.shape[1],
            learning_rates=linear.learning_rates or LEARNING_RATES,
            epochs=linear.epochs,
            milestones=linear.milestones,
            batch_size=linear.batch_size,
            crop=config.crop,
            seed=config.seed,
            workers=config.workers,
            device=device,
            holdout=linear.holdout,
            progress=bar.update,
        )
    best = result.best
    chosen = {
        "learning_rate": best.learning_rate,
        "chosen_on": result.chosen_on,
        "sweep": [list(point) for point in result.sweep],
        "test_accuracies": {str(rate): value for rate, value in result.accuracies.items()},
        "diverged": result.diverged,
    }
    run.log(f"{features.subject.title}: learning rate {best.learning_rate:g}{_reason(result.sweep)}")
    return best.predictions, Head(best.weight, best.bias, "pooled"), chosen


def _reason(sweep: list[tuple[float, float]]) -> str:
    return f", {100 * max(score for _, score in sweep):.1f}% on held-out images" if sweep else ""


def _classified(
    key: str,
    predictions: Tensor,
    test: LabelledImages,
    chosen: dict[str, Any] | None = None,
    head: Head | None = None,
) -> Outcome:
    names = test.class_names
    return Outcome(
        values={key: accuracy(predictions, test.targets)},
        per_class={key: accuracy_by_class(predictions, test.targets, names)},
        chance={key: 1 / len(names)},
        chosen=chosen or {},
        head=head,
    )
