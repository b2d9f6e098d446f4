"""Images -> regions, streamed: only one or two batches of dense features exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyscene.runtime.features import network_output

from .data import LabelScheme, Pairs
from .loading import batches
from .regions import ImageRegions

Describe = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], ImageRegions]


@dataclass(frozen=True)
class RegionSet:
    """Regions of many images.

    Attributes:
        embeddings: (R, D) float32, L2-normalised.
        histograms: (R, C + 1) int64, pixels per class and void.
        labels: (R,) int64, majority label; -1 for none.
        owners: (R,) int64, position of the image.
        numbers: (R,) int64, the region's number in its image's map.
        maps: (I, h, w) uint8, region number of every cell of every image.
        rest: (C + 1,) int64, pixels outside all regions.
    """

    embeddings: np.ndarray
    histograms: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    numbers: np.ndarray
    maps: np.ndarray
    rest: np.ndarray


@torch.no_grad()
def dense_features(network: nn.Module, images: Tensor, *, device: torch.device, precision: str = "fp32") -> Tensor:
    """L2-normalised cells of the last feature map.

    Args:
        network: images (N, 3, H, W) -> list of maps, the last of which (N, D, h, w) is taken; on ``device``.
        images: (N, 3, H, W) uint8.
        device: where the network is.
        precision: ``fp32``, or ``bf16`` through autocast.

    Returns:
        (N, h, w, D) float32, contiguous, on the CPU.
    """
    cells = network_output(network, images.to(device, non_blocking=True), precision)[-1]
    return F.normalize(cells.float(), dim=1).permute(0, 2, 3, 1).contiguous().cpu()


def extract_regions(
    network: nn.Module,
    pairs: Pairs,
    scheme: LabelScheme,
    describe: Describe,
    label: Callable[[np.ndarray], np.ndarray],
    *,
    size: tuple[int, int],
    most: int,
    drop_unlabelled: bool,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> RegionSet:
    """The regions of all images. Memory: the regions, and two batches of dense features.

    Args:
        network: dense features; see :func:`dense_features`.
        pairs: images with label maps.
        scheme: classes and void values.
        describe: cells (h, w, D), labels (H, W), salient (H, W) or None -> regions of one image.
        label: histograms (R, C + 1) -> labels (R,), -1 for none.
        size: height and width of the resized images, multiples of the network's stride.
        most: upper bound of regions per image.
        drop_unlabelled: leave regions without label out, as a bank does.
        device: where the network is.
        precision: ``fp32`` or ``bf16``.
        batch_size: images per forward pass.
        workers: processes that decode.
        progress: called with the number of images done.

    Raises:
        UserError: an image or label map that cannot be used.
    """
    embeddings, done, count = None, 0, 0
    histograms, labels, owners, numbers, maps = [], [], [], [], []
    rest = np.zeros(scheme.count + 1, dtype=np.int64)
    stream = batches(pairs, scheme, size=size, batch_size=batch_size, workers=workers)
    for regions in _described(network, stream, describe, batch_size, device, precision):
        found = label(regions.histograms)
        kept = np.flatnonzero(found >= 0) if drop_unlabelled else np.arange(len(found))
        if embeddings is None:
            # The system hands out pages of it as they are written; growing a list and joining it needs twice as much.
            embeddings = np.empty((len(pairs) * most, regions.embeddings.shape[1]), dtype=np.float32)
        embeddings[count : count + len(kept)] = regions.embeddings[kept]
        histograms.append(regions.histograms[kept])
        labels.append(found[kept])
        owners.append(np.full(len(kept), done))
        numbers.append(kept)
        maps.append(regions.map)
        rest += regions.rest
        done, count = done + 1, count + len(kept)
        if progress is not None:
            progress(done)
    joined = (np.concatenate(parts) for parts in (histograms, labels, owners, numbers))
    return RegionSet(embeddings[:count], *joined, np.stack(maps), rest)


def _described(
    network: nn.Module, stream: Iterator, describe: Describe, batch_size: int, device: torch.device, precision: str
) -> Iterator[ImageRegions]:
    """Regions image by image; threads cluster one batch while the network works on the next."""
    threads = max(1, min(batch_size, torch.get_num_threads()))
    with ThreadPoolExecutor(threads, initializer=_one_thread_each) as pool:
        waiting: list[Future] = []
        try:
            for batch in chain(stream, [None]):
                jobs = []
                if batch is not None:
                    cells = dense_features(network, batch.images, device=device, precision=precision).numpy()
                    for i in range(len(cells)):
                        salient = None if batch.salient is None else batch.salient[i].numpy()
                        jobs.append(pool.submit(describe, cells[i], batch.labels[i].numpy(), salient))
                for job in waiting:
                    yield job.result()
                waiting = jobs
        finally:
            for job in waiting:
                job.cancel()


def _one_thread_each() -> None:
    """Within a pool of threads, faiss must not start a team of threads in each."""
    import faiss

    faiss.omp_set_num_threads(1)
