"""Labels carried from frame to frame by the similarity of features.

Label propagation as in Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk" (NeurIPS 2020), whose
public code gave the numbers of the thesis' table 7.5. Its details, where other code differs:

- a cell's neighbourhood is the disk of cells at a distance *below* the radius, in all context frames but the first;
- cells outside never count, not even where fewer than ``top_k`` are inside;
- the ``top_k`` are taken over the cells of all context frames together, and their softmax weights sum to one;
- soft label maps are propagated as they are, neither blurred nor rescaled;
- until enough frames are past, copies of the first frame fill the context (``pad``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 8


class Tile(NamedTuple):
    """A rectangle of query cells and the window of key cells that its neighbourhoods cover.

    Attributes:
        query: rows and columns of the queries.
        window: rows and columns of the keys.
        outside: (queries, keys) bool, keys that are not in the query's neighbourhood.
    """

    query: tuple[slice, slice]
    window: tuple[slice, slice]
    outside: Tensor


def neighbourhood_tiles(height: int, width: int, radius: float, device: torch.device, side: int = TILE) -> list[Tile]:
    """Cut a map into tiles, so that similarities are computed for the cells near each other only.

    Args:
        height: rows of the map.
        width: columns of the map.
        radius: a key is a neighbour if its distance is below this, in cells.
        device: where the masks are put.
        side: of a tile, in cells.
    """
    reach = max(0, int(radius) if radius != int(radius) else int(radius) - 1)
    tiles = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            query = (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
            window = tuple(
                slice(max(0, part.start - reach), min(size, part.stop + reach))
                for part, size in zip(query, (height, width))
            )
            (rows, columns), (key_rows, key_columns) = _cells(query, device), _cells(window, device)
            squared = (rows[:, None] - key_rows) ** 2 + (columns[:, None] - key_columns) ** 2
            tiles.append(Tile(query, window, squared >= radius**2))
    return tiles


def _cells(part: tuple[slice, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every cell of a rectangle, row by row."""
    rows, columns = (torch.arange(s.start, s.stop, device=device) for s in part)
    return rows.repeat_interleave(len(columns)), columns.repeat(len(rows))


@torch.no_grad()
def propagate_labels(
    query: Tensor,
    first: tuple[Tensor, Tensor],
    recent: tuple[Tensor, Tensor],
    tiles: list[Tile],
    *,
    top_k: int = 10,
    temperature: float = 0.05,
) -> Tensor:
    """The soft labels of a frame from those of its context.

    Args:
        query: (H, W, C) L2-normalised features of the frame.
        first: features (H, W, C) and labels (H, W, K) of the first frame; all its cells count.
        recent: features (T, H, W, C) and labels (T, H, W, K) of T >= 0 frames of which the neighbourhood counts.
        tiles: of :func:`neighbourhood_tiles` for this map.
        top_k: most similar cells that vote.
        temperature: of the softmax over their similarities.

    Returns:
        (H, W, K); where the context's labels are distributions over K, so are these.
    """
    first_features, first_labels = first[0].flatten(0, 1), first[1].flatten(0, 1)
    labels = query.new_empty(*query.shape[:2], first_labels.shape[1])
    frames = recent[0].shape[0]
    for tile in tiles:
        rows, columns = tile.query
        queries = query[rows, columns].flatten(0, 1)
        similarity = queries @ first_features.T
        candidates = first_labels
        if frames:
            # A tile sees T windows of some 30 x 30 cells instead of T maps of 60 x 107.
            keys, values = (part[:, tile.window[0], tile.window[1]].flatten(0, 2) for part in recent)
            near = (queries @ keys.T).unflatten(1, (frames, -1))
            near = near.masked_fill_(tile.outside[:, None], float("-inf")).flatten(1)
            similarity = torch.cat([similarity, near], dim=1)
            candidates = torch.cat([candidates, values])
        best, index = similarity.topk(min(top_k, similarity.shape[1]), dim=1, sorted=False)
        weight = (best / temperature).softmax(dim=1)
        voted = (weight[..., None] * candidates[index]).sum(dim=1)
        labels[rows, columns] = voted.unflatten(0, (rows.stop - rows.start, columns.stop - columns.start))
    return labels


def propagate_video(
    features: Iterable[Tensor],
    first_labels: Tensor,
    *,
    context: int = 20,
    radius: float = 12,
    top_k: int = 10,
    temperature: float = 0.05,
    pad: bool = True,
) -> Iterator[Tensor]:
    """Soft labels of the second frame, the third and so on.

    Memory: the features of ``context + 2`` frames, and the similarities of one tile.

    Args:
        features: (H, W, C) L2-normalised features, frame by frame, beginning with the first.
        first_labels: (H, W, K) labels of the first frame, a distribution over K per cell.
        context: previous frames that vote beside the first one.
        radius: of the neighbourhood in them, in cells.
        top_k: most similar cells that vote.
        temperature: of the softmax over their similarities.
        pad: fill the context with copies of the first frame until ``context`` frames are past; False: it grows, and
            holds every frame once.

    Yields:
        (H, W, K) tensors on the features' device.
    """
    frames = iter(features)
    first = next(frames)
    height, width = first.shape[:2]
    first_labels = first_labels.to(first)
    tiles = neighbourhood_tiles(height, width, radius, first.device)
    recent = first.new_empty(context, *first.shape), first.new_empty(context, *first_labels.shape)
    if pad:
        recent[0][:], recent[1][:] = first, first_labels
    for past, query in enumerate(frames):
        held = context if pad else min(past, context)
        labels = propagate_labels(
            query,
            (first, first_labels),
            (recent[0][:held], recent[1][:held]),
            tiles,
            top_k=top_k,
            temperature=temperature,
        )
        if context:
            recent[0][past % context], recent[1][past % context] = query, labels
        yield labels


def soft_labels(mask: Tensor, labels: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """A label map as distributions on a coarser map: bilinear samples of the one-hot map, no smoothing before.

    Args:
        mask: (H, W) integer label map.
        labels: the objects' labels; every other value is background.
        size: rows and columns of the feature map.

    Returns:
        (h, w, 1 + objects) float32, background first, summing to one.
    """
    objects = torch.stack([mask == label for label in labels])
    one_hot = torch.cat([~objects.any(dim=0, keepdim=True), objects]).float()
    return F.interpolate(one_hot[None], size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def hard_labels(soft: Tensor, labels: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Soft labels (h, w, 1 + objects) -> (H, W) uint8 label map: bilinear upsampling, then the largest."""
    full = F.interpolate(soft.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    return torch.tensor([0, *labels], dtype=torch.uint8, device=soft.device)[full.argmax(dim=0)]
