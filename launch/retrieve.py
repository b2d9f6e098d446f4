"""``polyscene retrieve``: segmentation by retrieving the nearest labelled regions in frozen feature space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from polyscene.downstream.backbones import feature_maps
from polyscene.downstream.segments.data import VOC_SUBSET
from polyscene.downstream.segments.extract import RegionSet, extract_regions
from polyscene.downstream.segments.pictures import choose_queries, retrieval_picture
from polyscene.downstream.segments.regions import cluster_regions, majority_labels, salient_region
from polyscene.downstream.segments.retrieval import Retrieval, check_bank, retrieve_labels
from polyscene.downstream.segments.scores import class_iou, mean_iou, pixel_accuracy
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture, Published
from polyscene.runtime.run import RunDirectory

from .evaluation import Subject, finish_evaluation, open_evaluation, open_subjects
from .retrieve_config import RetrieveConfig
from .retrieve_task import Task, check_values, open_task

# Thesis table 7.6: ResNet-50 pretrained on COCO, mean IoU over 7 and 21 classes.
PUBLISHED = (("MoCo", 0.418, 0.281), ("MoCo + multi-crop", 0.481, 0.351), ("DenseCL", 0.484, 0.351))


def retrieve(config: RetrieveConfig) -> int:
    """Measure, print tables, write results.json and pictures; returns the exit code.

    Raises:
        UserError: wrong values, weights, data or output folder.
    """
    check_values(config)
    task = open_task(config)
    subjects = open_subjects(config)
    run = open_evaluation(config)
    if run is None:
        return 0
    found = [_measure(config, task, subject, run) for subject in subjects]
    by_name = {subject.name: values for subject, (values, _) in zip(subjects, found)}
    wanted = _metrics(task)
    metrics = [m for m in wanted if all(values.scores[m.key] is not None for values, _ in found)]
    for metric in wanted:
        if metric not in metrics:
            run.warn(f"no {metric.label}: none of its classes occurs in the test images or the predictions")
    keys = [metric.key for metric in metrics]
    evaluation = Evaluation(
        command="retrieve",
        title=f"segment retrieval ({config.protocol}): {len(task.test_pairs)} images from {len(task.bank_pairs)}",
        subject=subjects[0].title,
        metrics=metrics,
        values={key: by_name["weights"].scores[key] for key in keys},
        baseline={n: {key: v.scores[key] for key in keys} for n, v in by_name.items() if n != "weights"},
        # The labels in the bank, and with them the odds, hardly differ between backbones.
        chance={key: by_name["weights"].chance[key] for key in keys},
        per_class={"miou_all": {name: values.per_class for name, values in by_name.items()}},
        published=_published(config, task),
        pictures=[picture for _, picture in found if picture is not None],
        protocol=_protocol(config, task, subjects[0], by_name),
    )
    finish_evaluation(run, evaluation, per_class=("miou_all",))
    return 0


@dataclass(frozen=True)
class Found:
    """The numbers of one backbone.

    Attributes:
        scores: metric key -> value, None where no class of it occurs.
        chance: the same for labels drawn at random from the bank.
        per_class: class -> IoU, None where it does not occur.
        bank_regions: labelled regions in the bank.
        test_regions: regions that were looked up.
    """

    scores: dict[str, float | None]
    chance: dict[str, float | None]
    per_class: dict[str, float | None]
    bank_regions: int
    test_regions: int


def _measure(config: RetrieveConfig, task: Task, subject: Subject, run: RunDirectory) -> tuple[Found, Picture | None]:
    """Everything about one backbone; its bank is released at the end."""
    bank, test = _regions(config, task, subject, run)
    result = retrieve_labels(bank, test, task.background)
    if not result.confusion.any():
        raise UserError("all pixels of the test images are void; check data.ignore and data.labels")
    iou = class_iou(result.confusion)
    found = Found(
        scores=_scores(result.confusion, task),
        chance=_scores(result.guessing, task),
        per_class={n: None if np.isnan(v) else float(v) for n, v in zip(task.scheme.names, iou)},
        bank_regions=len(bank.labels),
        test_regions=len(test.labels),
    )
    picture = _picture(config, task, subject, bank, test, result, run) if config.picture_rows else None
    return found, picture


def _regions(config: RetrieveConfig, task: Task, subject: Subject, run: RunDirectory) -> tuple[RegionSet, RegionSet]:
    """Regions of the training images (those with a label) and of the test images (all)."""
    device = choose_device(config.device)
    network = feature_maps(subject.weights, output_stride=config.output_stride)
    network.to(device, memory_format=torch.channels_last)
    classes = task.scheme.count
    if config.protocol == "kmeans":
        describe = partial(cluster_regions, classes=classes, clusters=config.clusters, seed=config.seed)
        most = config.clusters
    else:
        describe, most = partial(salient_region, classes=classes), 1
    sets = []
    for pairs, name in ((task.bank_pairs, "bank"), (task.test_pairs, "queries")):
        with ProgressBar(run.console, f"{subject.name}: {name}", len(pairs)) as bar:
            regions = extract_regions(
                network,
                pairs,
                task.scheme,
                describe,
                partial(majority_labels, excluded=task.background),
                size=config.size,
                most=most,
                drop_unlabelled=name == "bank",
                device=device,
                precision=config.precision,
                batch_size=config.batch_size,
                workers=config.workers,
                progress=bar.update,
            )
        if name == "bank":
            check_bank(regions, task.scheme.names)
        sets.append(regions)
    return sets[0], sets[1]


def _metrics(task: Task) -> list[Metric]:
    metrics = [Metric("miou_all", f"mIoU, {task.scheme.count} classes"), Metric("pixel_accuracy", "pixel accuracy")]
    if task.subset:
        metrics.insert(0, Metric(_subset_key(task), f"mIoU, {len(task.subset)} classes"))
    return metrics


def _subset_key(task: Task) -> str:
    return f"miou_{len(task.subset)}"


def _scores(confusion: np.ndarray, task: Task) -> dict[str, float | None]:
    iou = class_iou(confusion)
    scores = {"miou_all": mean_iou(iou), "pixel_accuracy": pixel_accuracy(confusion)}
    if task.subset:
        scores[_subset_key(task)] = mean_iou(iou, task.subset)
    return scores


def _picture(
    config: RetrieveConfig,
    task: Task,
    subject: Subject,
    bank: RegionSet,
    test: RegionSet,
    result: Retrieval,
    run: RunDirectory,
) -> Picture | None:
    queries = choose_queries(test, config.picture_rows, task.colours_background)
    if not queries:
        return None
    name = f"retrieval_{subject.name}.png"
    retrieval_picture(
        run.pictures / name,
        queries=queries,
        bank=bank,
        test=test,
        retrieval=result,
        bank_pairs=task.bank_pairs,
        test_pairs=task.test_pairs,
        scheme=task.scheme,
        size=config.size,
        background=task.colours_background,
        title=f"{subject.title}: query region, nearest regions of the training images (label, cosine similarity)",
    )
    caption = f"{subject.title}: query region, its nearest training regions, predicted map and ground truth"
    return Picture(f"pictures/{name}", caption)


def _published(config: RetrieveConfig, task: Task) -> list[Published]:
    """The thesis' rows, where this run differs from theirs by the backbone only."""
    data = config.data
    same = data.kind == "voc2012" and data.classes is None and data.train is None and data.test is None
    same = same and data.subset_classes in (None, VOC_SUBSET) and data.ignore is None
    if not same or config.protocol != "kmeans" or config.clusters != 15 or config.size != (512, 512):
        return []
    return [Published(name, "thesis table 7.6", {"miou_7": seven, "miou_all": all}) for name, seven, all in PUBLISHED]


def _protocol(config: RetrieveConfig, task: Task, subject: Subject, found: dict[str, Found]) -> dict:
    salient = config.protocol == "saliency"
    return {
        **to_dict(config),
        "arch": subject.weights.arch,
        "classes": list(task.scheme.names),
        "subset_classes": [task.scheme.names[c] for c in task.subset],
        "ignore": list(task.scheme.ignore),
        "train_images": len(task.bank_pairs),
        "test_images": len(task.test_pairs),
        "bank_regions": {name: values.bank_regions for name, values in found.items()},
        "test_regions": {name: values.test_regions for name, values in found.items()},
        "features": f"layer4, dilated to output stride {config.output_stride}, every cell L2-normalised",
        "resizing": "images bilinear with antialiasing, aspect not kept; labels nearest; scored at this size",
        "regions": (
            "salient mask (saliency > 0.5); mean of the features of its pixels, L2-normalised"
            if salient
            else "k-means per image (faiss, k-means++ start, 20 iterations); mean of the cells, L2-normalised"
        ),
        "bank": (
            "majority label of the mask without background and void; masks without any are dropped"
            if salient
            else "majority label at pixels; regions whose majority is void are dropped"
        ),
        "search": "exact inner product, nearest region",
        "prediction": "its label in the mask, background elsewhere" if salient else "its label in the whole region",
        "mean": "without classes that neither the ground truth nor the predictions hold; void is not counted",
        "chance": "expected score of giving every region the label of a bank region drawn at random",
    }
