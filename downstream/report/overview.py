"""The first table of a report: every run with its state, its main number and how far that is from random."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from polyscene.runtime.results import Metric

from .comparison import show_difference, show_value
from .pretraining import main_number, method, state_of
from .runs import EvaluationRun, PretrainRun

COMMANDS = {
    "probe": "Classification with frozen features",
    "retrieve": "Segment retrieval",
    "propagate": "Video label propagation",
    "cam": "Class activation maps",
    "multitask": "Multi-task transfer",
    "analyse": "Analyses of multi-task models",
}
"""Command -> what it measures, for headings."""

PROTOCOLS = {"voc_svm": "SVM", "knn": "kNN", "kmeans": "k-means segments", "saliency": "salient masks"}
"""Protocol -> its name for headings, where that is not the word itself."""


def heading(command: str, protocol: str) -> str:
    """What a group of evaluations is called."""
    name = COMMANDS.get(command, command)
    return f"{name}: {PROTOCOLS.get(protocol, protocol)}" if protocol else name


@dataclass(frozen=True)
class OverviewRow:
    """What the overview says about one run; `better` as in :func:`show_difference`."""

    name: str
    what: str
    state: str
    when: str
    label: str
    value: str
    baseline: str
    difference: str
    better: bool | None


def overview_row(run: PretrainRun | EvaluationRun) -> OverviewRow:
    """State, time, main number, baseline and their difference."""
    when = (run.ended or "–")[:16]
    if isinstance(run, PretrainRun):
        label, value = main_number(run.curves)
        return OverviewRow(run.name, f"pretraining, {method(run)}", state_of(run), when, label, value, "–", "", None)
    evaluation = run.evaluation
    if evaluation is None:
        return OverviewRow(run.name, "evaluation", run.state, when, "", "–", "–", "", None)
    protocol = evaluation.protocol.get("protocol")
    what = f"{evaluation.command}, {protocol}" if isinstance(protocol, str) and protocol else evaluation.command
    if not evaluation.metrics:
        pictures = len(evaluation.pictures)
        label = f"{pictures} picture{'s' * (pictures != 1)}"
        return OverviewRow(run.name, what, run.state, when, label, "–", "–", "", None)
    main = evaluation.metrics[0]
    value = evaluation.values[main.key]
    base = next(iter(evaluation.baseline.values()), {}).get(main.key)
    text, better = show_difference(main, value, base)
    shown = show_value(main, value, evaluation.deviation.get(main.key))
    return OverviewRow(run.name, what, run.state, when, label_of(main), shown, show_value(main, base), text, better)


def label_of(metric: Metric) -> str:
    """A metric's label, with a word where less is better."""
    return metric.label if metric.better == "higher" else f"{metric.label} (lower is better)"


def subject_name(run: EvaluationRun, pretrained: Mapping[str, str]) -> str:
    """The measured backbone in short: the name it has in this report, or the end of its path.

    Args:
        run: a finished evaluation.
        pretrained: real path of a pretraining or its backbone -> its name here.
    """
    subject = run.evaluation.subject
    if os.sep not in subject:
        return subject
    known = pretrained.get(os.path.realpath(subject))
    parts = subject.rstrip(os.sep).split(os.sep)
    return known or (subject if len(parts) <= 4 else "…/" + "/".join(parts[-3:]))


def letters(count: int) -> list[str]:
    """A, B, ..., Z, AA, AB, ..."""

    def name(i: int) -> str:
        return (name(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)

    return [name(i) for i in range(count)]
