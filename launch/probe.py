"""``polyscene probe``: classification with frozen features of a backbone, beside those of random weights."""

from __future__ import annotations

from polyscene.downstream.frozen.datasets import LabelledImages
from polyscene.downstream.frozen.feature_cache import open_cache
from polyscene.downstream.frozen.linear_head import HEAD_FILE, RANDOM_HEAD_FILE, write_head
from polyscene.downstream.frozen.published import published_linear, published_svm
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.results import Evaluation, Metric, Published

from .evaluation import Subject, finish_evaluation, open_evaluation, open_subjects
from .probe_config import ProbeConfig, check_values
from .probe_data import open_pair
from .probe_features import FrozenFeatures, frozen_backbone
from .probe_protocols import Outcome, judged_classes, measure_knn, measure_linear, measure_svm

_ACCURACY = {"knn": "knn_accuracy", "linear": "linear_accuracy", "voc_svm": "svm_accuracy"}
_MAP = (
    Metric("map_area", "mAP (area)"),
    Metric("map_interpolated", "mAP (interp.)"),
    Metric("map_11_point", "mAP (11-point)"),
)


def probe(config: ProbeConfig) -> int:
    """Measure, print tables, write results.json (and the head of a linear probe); returns the exit code.

    Raises:
        UserError: wrong values, weights, data or output folder.
    """
    check_values(config)
    device = choose_device(config.device)
    data = config.data
    train, test = open_pair(data.kind, root=data.root, train=data.train, test=data.test, download=data.download)
    _check_protocol(config, train, test)
    subjects = open_subjects(config)
    cache = open_cache(config.cache)
    fingerprints = {"train": train.images.fingerprint(), "test": test.images.fingerprint()}
    run = open_evaluation(config)
    if run is None:
        return 0
    outcomes = {}
    for subject in subjects:
        backbone, line = frozen_backbone(subject.weights, device)
        run.log(f"{subject.title}: {line}")
        features = FrozenFeatures(config, run, subject, backbone, device, cache, fingerprints)
        if config.protocol == "knn":
            outcomes[subject.name] = measure_knn(config, features, train, test, device)
        elif config.protocol == "linear":
            outcomes[subject.name] = measure_linear(config, features, train, test, device, run)
        else:
            outcomes[subject.name] = measure_svm(config, features, train, test, run)
    for subject in subjects:
        head = outcomes[subject.name].head
        if head is not None:
            file = write_head(
                run.path / (HEAD_FILE if subject.name == "weights" else RANDOM_HEAD_FILE),
                head.weight,
                head.bias,
                train.class_names,
                subject.weights,
                normalised=head.features == "l2_normalised",
                view=(config.resize, config.crop),
            )
            run.log(f"linear head: '{file}'")
    evaluation = _evaluation(config, subjects, outcomes, train, test)
    finish_evaluation(run, evaluation, per_class=tuple(evaluation.per_class)[:1])
    return 0


def _check_protocol(config: ProbeConfig, train: LabelledImages, test: LabelledImages) -> None:
    """Refuse a data set that the protocol cannot use, before anything is computed."""
    if train.multi_label and config.protocol != "voc_svm":
        raise UserError(
            f"protocol={config.protocol} needs one class per image, and these images have several; use protocol=voc_svm"
        )
    if config.protocol == "voc_svm" and not judged_classes(train, test).any():
        raise UserError(
            "no class has training images with it and without it, and a test image with it; an SVM cannot be judged"
        )


def _evaluation(
    config: ProbeConfig,
    subjects: list[Subject],
    outcomes: dict[str, Outcome],
    train: LabelledImages,
    test: LabelledImages,
) -> Evaluation:
    """Everything that results.json holds."""
    measured = outcomes["weights"]
    metrics = [m for m in (*_MAP, Metric(_ACCURACY[config.protocol], "accuracy")) if m.key in measured.values]
    per_class = {
        key: {name: outcome.per_class[key] for name, outcome in outcomes.items()} for key in measured.per_class
    }
    return Evaluation(
        command="probe",
        title=f"{_name(config)}: {len(test.images)} test images, {len(train.class_names)} classes",
        subject=subjects[0].title,
        metrics=metrics,
        values=measured.values,
        baseline={name: outcome.values for name, outcome in outcomes.items() if name != "weights"},
        chance=measured.chance,
        per_class=per_class,
        published=_published(config),
        protocol={
            **to_dict(config),
            "arch": subjects[0].weights.arch,
            "train_images": len(train.images),
            "test_images": len(test.images),
            "classes": list(train.class_names),
            "chosen": {name: outcome.chosen for name, outcome in outcomes.items()},
        },
    )


def _name(config: ProbeConfig) -> str:
    if config.protocol == "knn":
        return f"kNN (k = {config.k})"
    if config.protocol == "linear":
        return f"linear ({'L-BFGS' if config.linear.solver == 'lbfgs' else 'SGD'})"
    return f"SVM ({'thesis' if config.svm.variant == 'paper' else 'VISSL'})"


def _published(config: ProbeConfig) -> tuple[Published, ...]:
    """The thesis' rows where data, protocol and crops are its own."""
    if (config.resize, config.crop) != (256, 224):
        return ()
    if config.protocol == "linear" and config.linear.solver == "sgd":
        return published_linear(config.data.kind, "linear_accuracy")
    if (config.protocol, config.data.kind, config.svm.variant) == ("voc_svm", "voc2007", "paper"):
        # The published script computes the interpolated area.
        return published_svm("map_interpolated") if config.svm.cost == 0.5 else ()
    return ()
