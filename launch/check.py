"""``polyscene check``: what a pretraining config and its data will do, before GPU hours are spent."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from polyscene.runtime.distributed import choose_device
from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage, read_image
from polyscene.ssl.moco.encoder import Encoder, create_backbone
from polyscene.ssl.sources import ImageSource
from polyscene.ssl.views.crops import iou, mean_crop_iou
from polyscene.ssl.views.render import render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

from .pretrain import open_images, plan_norm, plan_schedule, queue_warnings, view_spec
from .pretrain_config import PretrainConfig

Row = tuple[str, str]


def check(config: PretrainConfig, *, sample: int = 1000, timed_images: int = 8) -> int:
    """Print what the config resolves to and what was found; returns the exit code.

    Args:
        config: a validated config.
        sample: images that are decoded to look for damage; all of them where there are fewer.
        timed_images: images of the timed training step.

    Raises:
        UserError: the run would be refused or would end soon after its start.
    """
    console = Console(stderr=True, highlight=False)
    device = choose_device(config.device)
    source = open_images(config, cache_dir=None)
    schedule = plan_schedule(config, len(source))
    norm = plan_norm(config, 1)
    images = source_rows(source, sample, config, console)
    views = view_rows(view_spec(config), images.sizes, config)
    plan = [
        ("steps", f"{schedule.total_steps:,} ({schedule.steps_per_epoch:,} an epoch x {config.epochs} epochs)"),
        ("BatchNorm (one process)", f"{norm.kind}, groups of {norm.group}"),
        ("anchors whose own old key is a negative", f"{100 * stale_share(config.model.queue, len(source)):.1f}%"),
        ("speed", speed_row(config, source, device, timed_images)),
    ]
    table = Table(show_header=False, title=f"{config.out}", title_justify="left")
    for row in [*images.rows, *views, *plan]:
        table.add_row(*row)
    Console(highlight=False).print(table)
    for warning in [*images.warnings, *queue_warnings(config, len(source))]:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print("no problem found", style="green")
    return 0


class SourceFindings:
    """What was found in the images: table rows, warnings, and the (n, 2) heights and widths seen."""

    def __init__(self, rows: list[Row], warnings: list[str], sizes: np.ndarray):
        self.rows, self.warnings, self.sizes = rows, warnings, sizes


def source_rows(source: ImageSource, sample: int, config: PretrainConfig, console: Console) -> SourceFindings:
    """Decode a sample of the images and describe it.

    Raises:
        UserError: more of the sample is unreadable than the run would tolerate.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:sample])
    sizes, unreadable = [], []
    for index in track(chosen.tolist(), "decoding images", console=console, transient=True):
        try:
            sizes.append(read_image(source.path(index)).shape[1:])
        except UnreadableImage as error:
            unreadable.append(str(error))
    share = len(unreadable) / len(chosen)
    if share > config.data.max_unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(chosen)} sampled images in '{config.data.root}' are unreadable (first: "
            f"{unreadable[0]}), more than data.max_unreadable={config.data.max_unreadable}; repair or remove them"
        )
    table = np.array(sizes)
    short = table.min(axis=1)
    rows = [
        ("images", f"{len(source):,}" + (f" in {len(source.class_names)} classes" if source.class_names else "")),
        ("height x width, median", f"{np.median(table[:, 0]):.0f} x {np.median(table[:, 1]):.0f}"),
        ("shorter side, 1% / 50% / 99%", " / ".join(f"{q:.0f}" for q in np.quantile(short, [0.01, 0.5, 0.99]))),
        ("unreadable", f"{len(unreadable)} of {len(chosen)} decoded"),
    ]
    warnings = [f"unreadable: {reason}" for reason in unreadable[:5]]
    if np.median(short) < config.views.large.size / 2:
        warnings.append(
            f"half of the images have a shorter side below {np.median(short):.0f} pixels: large crops of "
            f"views.large.size={config.views.large.size} are mostly enlarged"
        )
    return SourceFindings(rows, warnings, table)


def view_rows(views: ViewSpec, sizes: np.ndarray, config: PretrainConfig) -> list[Row]:
    """Statistics of the crop sampler on images of these sizes (thesis figure 7.2)."""
    params = sample_views(config.seed, 0, np.arange(len(sizes)), sizes, views)
    boxes = params.boxes.numpy()
    large, small = config.views.large, config.views.small
    crops = f"{large.count} of {large.size}" + (f" + {small.count} of {small.size}" if small.count else "")
    rows = [("crops, pixels", crops), ("mean IoU of query and anchor", f"{mean_crop_iou(boxes):.3f}")]
    if small.count:
        local, anchor = boxes[:, large.count :], boxes[:, 1:2]
        rows.append(
            ("mean IoU of small crops and anchor", f"{iou(local, np.broadcast_to(anchor, local.shape)).mean():.3f}")
        )
        missed = params.fallback[:, large.count :].float().mean()
        rows.append((f"small crops that miss '{views.constraint}'", f"{100 * missed:.2f}%"))
    return rows


def stale_share(queue: int, images: int) -> float:
    """Share of anchors that find their own key of the last epoch among the negatives.

    Two visits of an image in random order lie ``d = n - p + q`` images apart, p and q uniform in [0, n): the share is
    the probability of d <= K.

    Args:
        queue: keys remembered, K.
        images: images of the data set, n.
    """
    ratio = queue / images
    if ratio <= 1:
        return ratio * ratio / 2
    return 1 - max(0.0, 2 - ratio) ** 2 / 2


def speed_row(config: PretrainConfig, source: ImageSource, device: torch.device, count: int) -> str:
    """Images per second and epochs per hour of one process on this machine, from a short training step."""
    views = view_spec(config)
    count = min(count, len(source))
    images = []
    for index in range(len(source)):
        try:
            images.append(read_image(source.path(index)))
        except UnreadableImage:
            continue
        if len(images) == count:
            break
    sizes = np.array([image.shape[1:] for image in images])
    params = sample_views(config.seed, 0, np.arange(len(images)), sizes, views)
    torch.manual_seed(config.seed)
    query = Encoder(create_backbone(config.model.backbone), config.model.dim).to(
        device, memory_format=torch.channels_last
    )
    step = partial(_timed_step, query, [image.to(device) for image in images], params, views, device, config.precision)
    step()
    seconds = min(step() for _ in range(2)) / len(images)
    per_hour = 3600 / (seconds * len(source))
    return (
        f"about {1 / seconds:.3g} images/s, {per_hour:.2g} epochs an hour on one {device.type} "
        f"(from {len(images)} images; decoding excluded)"
    )


def _timed_step(query, images, params, views: ViewSpec, device: torch.device, precision: str) -> float:
    """Seconds of rendering, query forward and backward, and key forward; losses and queue are small beside them."""
    start = time.perf_counter()
    large, *small = render_views(images, params, views, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        total = query(torch.cat([large[:, :1], large[:, 2:]], 1).flatten(0, 1))[1].square().sum()
        for group in small:
            total = total + query(group.flatten(0, 1))[1].square().sum()
        with torch.no_grad():
            query(large[:, 1])
    total.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
