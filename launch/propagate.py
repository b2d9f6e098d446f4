"""``polyscene propagate``: masks of the first frame carried through videos, scored with J and F."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from polyscene.downstream.backbones import FeatureMaps, feature_maps
from polyscene.downstream.video.labelling import label_video
from polyscene.downstream.video.masks import read_mask, write_mask
from polyscene.downstream.video.pictures import draw_animation, draw_strip
from polyscene.downstream.video.scores import BOUND_TH, score_video
from polyscene.downstream.video.sequences import Video, check_video, davis_videos, folder_video
from polyscene.runtime.distributed import choose_device
from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture, Published
from polyscene.runtime.run import RunDirectory
from polyscene.runtime.weights import weights_hash

from .evaluation import Subject, finish_evaluation, open_evaluation, open_subjects
from .propagate_config import PropagateConfig, check_values

METRICS = (
    Metric("jf_mean", "J&F"),
    Metric("j_mean", "J mean"),
    Metric("j_recall", "J recall"),
    Metric("j_decay", "J decay", better="lower"),
    Metric("f_mean", "F mean"),
    Metric("f_recall", "F recall"),
    Metric("f_decay", "F decay", better="lower"),
)
# Keys whose defaults are the protocol of the published numbers.
PROTOCOL_KEYS = ("layer", "context", "pad_context", "radius", "top_k", "temperature")
# Thesis, table 7.5: J and F; J&F is their mean by definition.
PUBLISHED = (
    ("DenseCL, COCO", 0.606, 0.639),
    ("MAST, YT-VOS", 0.633, 0.676),
    ("STC, Kinetics", 0.648, 0.702),
    ("MoCo, COCO", 0.616, 0.666),
    ("MoCo + multi-crop, COCO", 0.643, 0.694),
)
# Pictures of all sequences are drawn; so many are listed in results.json, lest a report of DAVIS weighs 60 MB.
LISTED_SEQUENCES = 6

Scores = dict[str, dict[str, dict[str, float]]]
"""Name of a subject -> object -> metric -> value; no objects where a video has no masks to compare with."""


@dataclass(frozen=True)
class Measured:
    """A backbone under test, ready to run.

    Attributes:
        subject: its name, title and weights.
        network: with the one map that is compared, on the device.
    """

    subject: Subject
    network: FeatureMaps


def propagate(config: PropagateConfig) -> int:
    """Propagate, score, write results.json, label maps and pictures; returns the exit code.

    Raises:
        UserError: wrong weights, data or output folder.
    """
    check_values(config)
    device = choose_device(config.device)
    videos = _open_videos(config)
    subjects = open_subjects(config)
    measured = [Measured(subject, _network(config, subject, device)) for subject in subjects]
    run = open_evaluation(config)
    if run is None:
        return 0
    scores = {}
    # The weights behind a run directory's name may change between two starts; its scores would not be these.
    key = {subject.name: weights_hash(subject.weights) for subject in subjects}
    total = sum(len(video.frames) for video in videos) * len(subjects)
    done = 0
    with ProgressBar(run.console, "propagate", total) as bar:
        for video in videos:
            record = run.path / "scores" / f"{video.name}.json"
            found = _read_record(record, key)
            if found is None:
                found = _measure(config, run, video, measured, device, bar, done)
                make_folder(record.parent)
                write_text(record, json.dumps({"weights": key, "scores": found}, indent=2) + "\n")
            scores[video.name] = found
            done += len(video.frames) * len(subjects)
            bar.update(done)
    evaluation = _evaluation(config, videos, subjects, scores)
    finish_evaluation(run, evaluation, per_class=("jf_mean",) if evaluation.metrics else ())
    return 0


def _open_videos(config: PropagateConfig) -> list[Video]:
    data = config.data
    if data.kind == "davis2017":
        videos = davis_videos(Path(data.root), data.split, data.sequences)
    else:
        videos = [folder_video(Path(data.frames), Path(data.masks))]
    for video in videos:
        check_video(video)
    return videos


def _network(config: PropagateConfig, subject: Subject, device: torch.device) -> FeatureMaps:
    network = feature_maps(subject.weights, layers=(config.layer,), output_stride=8, dilate=False)
    return network.to(device, memory_format=torch.channels_last)


def _measure(
    config: PropagateConfig,
    run: RunDirectory,
    video: Video,
    measured: Sequence[Measured],
    device: torch.device,
    bar: ProgressBar,
    done: int,
) -> Scores:
    """Propagate through one video with every backbone; write its label maps and pictures."""
    first = read_mask(video.masks[0])
    objects = first.object_labels()
    # Decoded before the long work: a damaged mask should not cost minutes.
    truth = [read_mask(path).label_map(first, closed=video.closed) for path in video.masks]
    scores: Scores = {}
    columns: dict[str, Sequence[np.ndarray]] = {}
    for backbone in measured:
        name, began, maps = backbone.subject.name, time.monotonic(), []
        frames = label_video(
            backbone.network,
            video,
            truth[0],
            objects,
            device=device,
            precision=config.precision,
            batch_size=config.batch_size,
            workers=config.workers,
            context=config.context,
            radius=config.radius,
            top_k=config.top_k,
            temperature=config.temperature,
            pad=config.pad_context,
        )
        for labels in frames:
            maps.append(labels)
            done += 1
            bar.update(done, f"{video.name} ({name})")
        _write_maps(run.path / ("results" if name == "weights" else f"results_{name}") / video.name, video, maps)
        table = score_video(maps, truth, objects) if video.scored else {}
        scores[name] = {str(label): numbers for label, numbers in table.items()}
        columns[_column_title(backbone.subject)] = maps
        shown = f", J&F {100 * fmean(n['jf_mean'] for n in table.values()):.1f}%" if table else ""
        run.log(f"{video.name}, {name}: {len(maps)} frames in {time.monotonic() - began:.1f} s{shown}")
    if video.scored:
        columns["ground truth"] = truth
    draw_strip(run.pictures / f"{video.name}.png", video, columns, objects)
    draw_animation(run.pictures / f"{video.name}.gif", video, columns, objects)
    return scores


def _column_title(subject: Subject) -> str:
    if subject.name == "weights" and not subject.title.endswith("random initialisation"):
        return "weights"
    return "random initialisation"


def _write_maps(folder: Path, video: Video, maps: Sequence[np.ndarray]) -> None:
    """The official results folder of a sequence: a palette PNG per frame, named like it."""
    make_folder(folder)
    for frame, labels in zip(video.frames, maps, strict=True):
        write_mask(folder / f"{frame.stem}.png", labels)


def _read_record(path: Path, key: Mapping[str, str]) -> Scores | None:
    """The scores of a sequence that an earlier start finished; None if there are none of these weights."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["scores"] if record["weights"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluation(
    config: PropagateConfig, videos: Sequence[Video], subjects: Sequence[Subject], scores: Mapping[str, Scores]
) -> Evaluation:
    """Everything found, as results.json has it; without numbers where no video has masks to compare with."""
    rows = {
        subject.name: {
            f"{video}_{label}": numbers
            for video, found in scores.items()
            for label, numbers in found[subject.name].items()
        }
        for subject in subjects
    }
    metrics = METRICS if rows["weights"] else ()
    means = {
        name: {m.key: fmean(row[m.key] for row in table.values()) for m in metrics} for name, table in rows.items()
    }
    data = config.data
    where = f"DAVIS-2017 {data.split}" if data.kind == "davis2017" else f"'{videos[0].name}'"
    counts = [_count(len(videos), "video")] if data.kind == "davis2017" else []
    counts.append(_count(sum(len(video.frames) for video in videos), "frame"))
    counts.append(_count(len(rows["weights"]), "object") if metrics else "no masks to compare with")
    pictures = []
    for video in videos[:LISTED_SEQUENCES]:
        pictures.append(Picture(f"pictures/{video.name}.png", f"{video.name}: frames and propagated masks"))
        pictures.append(Picture(f"pictures/{video.name}.gif", f"{video.name}: the video with propagated masks"))
    return Evaluation(
        command="propagate",
        title=f"Video label propagation, {where} ({', '.join(counts)})",
        subject=subjects[0].title,
        metrics=metrics,
        values=means["weights"],
        baseline={name: values for name, values in means.items() if name != "weights" and metrics},
        per_class={
            m.key: {name: {row: numbers[m.key] for row, numbers in table.items()} for name, table in rows.items()}
            for m in metrics
        },
        published=_published() if metrics and _as_published(config) else (),
        pictures=pictures,
        protocol=_protocol(config, subjects),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _as_published(config: PropagateConfig) -> bool:
    """Whether data and protocol are those of the published numbers: DAVIS-2017 val and the keys' defaults."""
    data = config.data
    defaults = {field.name: field.default for field in fields(config)}
    same = all(getattr(config, key) == defaults[key] for key in PROTOCOL_KEYS)
    return same and data.kind == "davis2017" and data.split == "val" and data.sequences is None


def _published() -> list[Published]:
    return [
        Published(name, "thesis, table 7.5", {"jf_mean": round((j + f) / 2, 4), "j_mean": j, "f_mean": f})
        for name, j, f in PUBLISHED
    ]


def _protocol(config: PropagateConfig, subjects: Sequence[Subject]) -> dict[str, object]:
    """Every choice that decides the numbers."""
    start = "copies of the first frame fill it" if config.pad_context else "it grows"
    return {
        "data": config.data.kind,
        "split": config.data.split if config.data.kind == "davis2017" else None,
        "sequences": list(config.data.sequences) if config.data.sequences else None,
        "weights_hash": {subject.name: weights_hash(subject.weights) for subject in subjects},
        "arch": subjects[0].weights.arch,
        "features": f"{config.layer}, output stride 8 without dilation, native resolution, L2-normalised",
        "precision": config.precision,
        "context": f"first frame + {config.context} previous; at the beginning {start}",
        "neighbourhood": f"cells at a distance below {config.radius:g}, in all context frames but the first",
        "top_k": f"{config.top_k} over all cells of the context",
        "temperature": config.temperature,
        "labels": "bilinear samples of the one-hot first mask; soft maps propagated unchanged; bilinear, then argmax",
        "scores": f"davis2017-evaluation: without first and last frame, boundaries within {BOUND_TH} of the diagonal, "
        "mean over objects",
        "seed": config.seed,
    }
