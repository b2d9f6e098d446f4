"""Annotations derived from the exact labels: thin boundaries, the salient object, bounding boxes."""

from __future__ import annotations

import numpy as np

from .classes import lookup_table


def boundaries(instances: np.ndarray) -> np.ndarray:
    """(H, W) bool boundary map between instances, one pixel wide.

    A pixel is marked where its instance differs from that of its right or lower neighbour (every class change is an
    instance change); then corners of staircases are removed, which keeps the curves 8-connected and makes them thin.
    """
    edge = np.zeros(instances.shape, dtype=bool)
    edge[:, :-1] |= instances[:, :-1] != instances[:, 1:]
    edge[:-1] |= instances[:-1] != instances[1:]
    return _thin(edge)


def _thin(edge: np.ndarray) -> np.ndarray:
    """Remove pixels that only fill the corner between a horizontal and a vertical neighbour."""
    padded = np.pad(edge, 1)
    middle = padded[1:-1, 1:-1]
    for dy, dx in ((-1, 1), (1, 1), (1, -1), (-1, -1)):

        def at(y: int, x: int, image: np.ndarray = padded) -> np.ndarray:
            return image[1 + y : image.shape[0] - 1 + y, 1 + x : image.shape[1] - 1 + x]

        corner = middle & at(dy, 0) & at(0, dx) & ~at(-dy, 0) & ~at(0, -dx) & ~at(-dy, -dx)
        middle &= ~corner
    return middle.copy()


def saliency(instances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H, W) bool mask of the salient object or objects of a picture.

    Rule: every instance of a class that may be salient (``SceneClass.salient``: furniture, people, vehicles, trees,
    ... but no walls, ground or wall decoration) and that covers at least 0.5% of the image scores
    ``sqrt(area share) * exp(-3 d^2)``, with d the distance of its centroid from the image centre in units of the
    image diagonal. The best one is salient, and so is every other with at least 70% of the best score. Empty if
    there is none.
    """
    height, width = instances.shape
    allowed = lookup_table("salient").astype(bool)
    flat = instances.ravel()
    area = np.bincount(flat, minlength=256)
    x = np.bincount(flat, np.tile(np.arange(width), height), minlength=256) / np.maximum(area, 1)
    y = np.bincount(flat, np.repeat(np.arange(height), width), minlength=256) / np.maximum(area, 1)
    distance = ((x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2) / (width**2 + height**2)
    score = np.sqrt(area / instances.size) * np.exp(-3 * distance)
    label_of = np.zeros(256, dtype=np.int64)
    label_of[flat] = labels.ravel()
    score[~allowed[label_of] | (area < 0.005 * instances.size)] = 0
    best = score.max()
    return (score >= 0.7 * best)[instances] if best > 0 else np.zeros(instances.shape, dtype=bool)


def object_boxes(
    instances: np.ndarray, labels: np.ndarray, least: int = 40
) -> list[tuple[int, int, tuple[int, ...], int]]:
    """VOC objects of a picture: (VOC class id, instance id, (left, top, right, bottom) inclusive, area in pixels).

    Only instances of the VOC classes with at least ``least`` visible pixels, in order of instance id.
    """
    voc = lookup_table("voc")
    found = []
    for instance in np.unique(instances):
        mask = instances == instance
        kind, area = int(voc[labels[mask][0]]), int(mask.sum())
        if instance == 0 or kind == 0 or area < least:
            continue
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        found.append((kind, int(instance), (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])), area))
    return found
