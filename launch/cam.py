"""``polyscene cam``: where a frozen backbone looks, beside a second one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from polyscene.downstream.frozen.cam_photos import Photo, draw_photos, stream_views
from polyscene.downstream.frozen.cam_picture import Row, draw_page, shorten
from polyscene.downstream.frozen.cam_viewer import PREDICTED, TRUE, Viewer
from polyscene.downstream.frozen.linear_head import RANDOM_HEAD_FILE, LinearHead, read_head
from polyscene.runtime.config import to_dict
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.weights import read_weights, weights_hash
from polyscene.ssl.sources import open_source

from .cam_config import CamConfig, check_values
from .evaluation import Subject, finish_evaluation, open_evaluation, open_subjects


def cam(config: CamConfig) -> int:
    """Draw the maps, write pages of pictures and results.json; returns the exit code.

    Raises:
        UserError: wrong values, weights, heads, images or output folder.
    """
    check_values(config)
    device = choose_device(config.device)
    photos = draw_photos(_find_photos(config.images), config.count, config.seed)
    subjects = _subjects(config)
    viewers = [
        Viewer(
            subject.weights,
            subject.title,
            head,
            output_stride=config.output_stride,
            device=device,
            precision=config.precision,
        )
        for subject, head in zip(subjects, _heads(config, subjects))
    ]
    wanted = _wanted(config, viewers, photos)
    run = open_evaluation(config)
    if run is None:
        return 0
    for viewer in viewers:
        shown = "the first principal component" if viewer.head is None else f"the classes of '{viewer.head.path}'"
        run.log(f"{viewer.title}: {shown}")
        if viewer.head is not None and viewer.head.view not in (None, (config.resize, config.crop)):
            resize, crop = viewer.head.view
            run.warn(f"the probe saw resize={resize} crop={crop}; at another size its classes may be wrong")
    unsettled = [viewer for viewer in viewers if viewer.head is None]
    with ProgressBar(run.console, "maps", len(photos) * (2 if unsettled else 1)) as bar:
        if unsettled:
            for done, (_, view) in enumerate(_views(config, photos), start=1):
                for viewer in unsettled:
                    viewer.study(view)
                bar.update(done)
            for viewer in unsettled:
                viewer.settle()
        pictures, right = _draw(config, run, photos, viewers, wanted, bar, len(photos) if unsettled else 0)
    finish_evaluation(run, _evaluation(config, subjects, viewers, photos, pictures, right))
    return 0


def _find_photos(images: str | Sequence[str]) -> list[Photo]:
    if isinstance(images, str) and not Path(images).is_file():
        source = open_source("folder", images)
        names: Sequence[str | None] = [None] * len(source)
        if source.labels is not None and source.class_names is not None:
            names = [source.class_names[label] for label in source.labels]
        return [Photo(source.path(i), name) for i, name in enumerate(names)]
    files = [Path(file) for file in ([images] if isinstance(images, str) else images)]
    if not files:
        raise UserError("images=[] names no image; give a folder, or files")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"images: '{missing[0]}' is not a file; correct its path ({len(missing)} of {len(files)})")
    return [Photo(file, file.resolve().parent.name) for file in files]


def _subjects(config: CamConfig) -> list[Subject]:
    if config.compare is None:
        return open_subjects(config)
    first = open_subjects(config)[0]
    return [first, Subject("compare", config.compare, read_weights(config.compare))]


def _heads(config: CamConfig, subjects: Sequence[Subject]) -> list[LinearHead | None]:
    """The head of every subject, or None; the random baseline may have one beside the head of the measured weights."""
    heads = [None if path is None else read_head(path) for path in (config.head, config.compare_head)][: len(subjects)]
    if len(subjects) == 2 and subjects[1].name == "random" and config.compare_head is None and heads[0] is not None:
        beside = heads[0].path.with_name(RANDOM_HEAD_FILE)
        if beside.is_file():
            head = read_head(beside)
            # Another seed makes other random weights, whose head this is not.
            heads[1] = head if head.weights_hash == weights_hash(subjects[1].weights) else None
    return heads


def _wanted(config: CamConfig, viewers: Sequence[Viewer], photos: Sequence[Photo]) -> list[str]:
    heads = [viewer.head for viewer in viewers if viewer.head is not None]
    if config.classes:
        for head in heads:
            for name in config.classes:
                head.number(name)
        return list(config.classes)
    known = {name for head in heads for name in head.class_names}
    return [PREDICTED, TRUE] if any(photo.class_name in known for photo in photos) else [PREDICTED]


def _views(config: CamConfig, photos: Sequence[Photo]) -> Iterator[tuple[Photo, torch.Tensor]]:
    return stream_views(photos, resize=config.resize, crop=config.crop, workers=config.workers)


def _draw(
    config: CamConfig,
    run: RunDirectory,
    photos: Sequence[Photo],
    viewers: Sequence[Viewer],
    wanted: Sequence[str],
    bar: ProgressBar,
    done: int,
) -> tuple[list[Picture], list[int]]:
    """Write the pages; returns them and, a viewer, how many photos were predicted right."""
    pages = math.ceil(len(photos) / config.rows)
    headings = _headings(viewers, wanted)
    right = [0] * len(viewers)
    pictures: list[Picture] = []
    rows: list[Row] = []
    for position, (photo, view) in enumerate(_views(config, photos), start=1):
        explained = [viewer.explain(view, wanted, photo.class_name) for viewer in viewers]
        for i, one in enumerate(explained):
            right[i] += one.predicted is not None and one.predicted == photo.class_name
        # A class after another, both backbones side by side; a component is shown once.
        columns = [(i, j) for j in range(len(wanted)) for i, one in enumerate(explained) if j < len(one.titles)]
        maps = torch.stack([explained[i].maps[j] for i, j in columns])
        title = photo.class_name or photo.path.name
        rows.append(Row(view, title, maps, [explained[i].titles[j] for i, j in columns]))
        bar.update(done + position)
        if len(rows) == config.rows or position == len(photos):
            name = f"cam_{len(pictures) + 1:02d}.png"
            draw_page(rows, headings, run.pictures / name, colours=config.colours, alpha=config.alpha)
            caption = f"where the backbones look, page {len(pictures) + 1} of {pages}"
            pictures.append(Picture(f"pictures/{name}", caption))
            rows = []
    return pictures, right


def _headings(viewers: Sequence[Viewer], wanted: Sequence[str]) -> list[str]:
    """Backbone and what is shown, in the order of the columns of `_draw`."""
    headings = []
    for j, name in enumerate(wanted):
        for viewer in viewers:
            title = shorten(viewer.title.replace(", random initialisation", ", random"))
            if viewer.head is not None:
                headings.append(f"{title}\n{name} class" if name in (PREDICTED, TRUE) else f"{title}\n{name}")
            elif j == 0:
                headings.append(f"{title}\nfirst component")
    return headings


def _evaluation(
    config: CamConfig,
    subjects: Sequence[Subject],
    viewers: Sequence[Viewer],
    photos: Sequence[Photo],
    pictures: Sequence[Picture],
    right: Sequence[int],
) -> Evaluation:
    # Maps have no number of their own; the one that is known is whether the classes they explain were right.
    metrics, values, chance = [], {}, {}
    baseline = {subject.name: {} for subject in subjects[1:] if subject.name == "random"}
    shares = [_share(viewer, photos, count) for viewer, count in zip(viewers, right)]
    head = viewers[0].head
    if head is not None and shares[0] is not None:
        metrics.append(Metric("accuracy", "accuracy on these images"))
        values["accuracy"], chance["accuracy"] = shares[0], 1 / len(head.class_names)
        if len(shares) == 2 and shares[1] is not None:
            if baseline:
                baseline["random"] = {"accuracy": shares[1]}
            else:
                metrics.append(Metric("compare_accuracy", f"of {shorten(subjects[1].title)}"))
                values["compare_accuracy"] = shares[1]
    return Evaluation(
        command="cam",
        title=f"Where frozen features look: {len(photos)} images",
        subject=subjects[0].title,
        metrics=metrics,
        values=values,
        baseline=baseline,
        chance=chance,
        pictures=pictures,
        protocol={
            **to_dict(config),
            "images_shown": len(photos),
            "images_with_class": 0 if head is None else _labelled(head, photos),
            "layer": "layer4",
            "maps": {
                subject.name: {
                    "backbone": subject.title,
                    "arch": subject.weights.arch,
                    "shows": "first principal component" if viewer.head is None else "class activation",
                    "component_variance": None if viewer.component is None else viewer.component.variance_share,
                }
                for subject, viewer in zip(subjects, viewers)
            },
            "scaling": "every map from its own lowest to its own highest value",
        },
    )


def _labelled(head: LinearHead, photos: Sequence[Photo]) -> int:
    return sum(photo.class_name in head.class_names for photo in photos)


def _share(viewer: Viewer, photos: Sequence[Photo], right: int) -> float | None:
    """Accuracy on the photos whose class the viewer's head has; None where there is none."""
    labelled = 0 if viewer.head is None else _labelled(viewer.head, photos)
    return right / labelled if labelled else None
