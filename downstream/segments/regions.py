"""Regions of one image: a descriptor, and how many pixels of every class lie in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .partition import kmeans_segments

NO_REGION = 255
"""Number of the cells of a region map that belong to no region."""


class ImageRegions(NamedTuple):
    """The R regions of one image.

    Attributes:
        embeddings: (R, D) float32, L2-normalised mean of the regions' L2-normalised cells.
        histograms: (R, C + 1) int64, pixels of every class and, last, of void in each region.
        rest: (C + 1,) int64, the same for the pixels that no region covers; they are background by definition.
        map: (h, w) uint8, region number of every cell, `NO_REGION` outside.
    """

    embeddings: np.ndarray
    histograms: np.ndarray
    rest: np.ndarray
    map: np.ndarray


def cluster_regions(
    cells: np.ndarray, labels: np.ndarray, salient: np.ndarray | None, *, classes: int, clusters: int, seed: int
) -> ImageRegions:
    """K-means segments as regions; every pixel belongs to one (thesis table 7.6).

    Args:
        cells: (h, w, D) float32, L2-normalised.
        labels: (H, W) int64 in 0 .. C, C being void; H and W are the same multiple of h and w.
        salient: not used.
        classes: C.
        clusters: K.
        seed: of k-means.
    """
    height, width, dims = cells.shape
    points = cells.reshape(-1, dims)
    numbers = kmeans_segments(points, clusters, seed=seed)
    members = np.zeros((numbers.max() + 1, len(numbers)), dtype=np.float32)
    members[numbers, np.arange(len(numbers))] = 1
    area = numbers.reshape(height, width)
    histograms = label_histograms(enlarge(area, labels.shape), labels, len(members), classes)
    nothing = np.zeros(classes + 1, dtype=np.int64)
    return ImageRegions(_normalise(members @ points), histograms, nothing, area.astype(np.uint8))


def salient_region(cells: np.ndarray, labels: np.ndarray, salient: np.ndarray | None, *, classes: int) -> ImageRegions:
    """The salient mask as the only region, if it covers anything; arguments as in :func:`cluster_regions`.

    The descriptor is the mean over the salient pixels of the feature of their cell.

    Args:
        cells: (h, w, D) float32, L2-normalised.
        labels: (H, W) int64 in 0 .. C.
        salient: (H, W) bool.
        classes: C.
    """
    height, width, dims = cells.shape
    rows, columns = labels.shape[0] // height, labels.shape[1] // width
    share = salient.reshape(height, rows, width, columns).mean(axis=(1, 3), dtype=np.float32)
    histograms = label_histograms(salient.astype(np.int64), labels, 2, classes)
    area = np.where(share > 0.5, 0, NO_REGION).astype(np.uint8)
    found = int(salient.any())
    embedding = _normalise(share.reshape(1, -1) @ cells.reshape(-1, dims))
    return ImageRegions(embedding[:found], histograms[1:][:found], histograms[0], area)


def enlarge(area: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map of cells (h, w) as a map of pixels; ``shape`` is a multiple of its shape."""
    rows, columns = shape[0] // area.shape[0], shape[1] // area.shape[1]
    return np.repeat(np.repeat(area, rows, axis=0), columns, axis=1)


def label_histograms(area: np.ndarray, labels: np.ndarray, regions: int, classes: int) -> np.ndarray:
    """(R, C + 1) int64 pixels of every class and void in every region of a pixel map (H, W) of region numbers."""
    pairs = area.astype(np.int64) * (classes + 1) + labels
    return np.bincount(pairs.ravel(), minlength=regions * (classes + 1)).reshape(regions, classes + 1)


def majority_labels(histograms: np.ndarray, excluded: int | None = None) -> np.ndarray:
    """The most frequent label of every region, the smaller one on ties.

    Args:
        histograms: (R, C + 1) pixels per class and void.
        excluded: a class that is not counted, nor is void then: the ``saliency`` protocol's background.

    Returns:
        (R,) int64; -1 where the majority is void (or, with ``excluded``, where nothing else lies in the region).
    """
    classes = histograms.shape[1] - 1
    if excluded is None:
        labels = histograms.argmax(axis=1)
        return np.where(labels == classes, -1, labels)
    counts = histograms[:, :classes].copy()
    counts[:, excluded] = 0
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
