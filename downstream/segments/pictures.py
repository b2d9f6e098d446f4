"""The retrieval picture: query region, its nearest bank regions, predicted map, ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import binary_dilation, binary_erosion
from torchvision.transforms.v2 import functional as T

from polyscene.runtime.images import read_image

from .data import LabelScheme, Pairs
from .extract import RegionSet
from .loading import read_labels, resize_nearest
from .regions import NO_REGION, enlarge
from .retrieval import Retrieval
from .search import most_similar

NEIGHBOURS = 5
CELL = 1.75  # inches per picture
QUERY_COLOUR, NEIGHBOUR_COLOUR = (255, 210, 0), (0, 230, 255)
VOID_COLOUR = (255, 255, 255)


def class_colours(classes: int, background: int | None = None) -> np.ndarray:
    """(C + 1, 3) uint8, a colour per class and, last, of void.

    With a background class those of VOC, whose class 0 is black; else distinct ones while there are 20 at most.
    """
    if background is None and classes <= 20:
        order = [*range(0, 20, 2), *range(1, 20, 2)]  # the ten strong colours first
        colours = (np.array(colormaps["tab20"].colors)[order][:classes] * 255).round().astype(np.uint8)
    else:
        colours = np.array([_voc_colour(c) for c in range(classes)], dtype=np.uint8)
    return np.vstack([colours, np.array([VOID_COLOUR], dtype=np.uint8)])


def choose_queries(test: RegionSet, count: int, background: int | None = None) -> list[int]:
    """Regions to show, of different images and classes as far as possible.

    From every image the largest labelled region that is not background; of these, the classes take turns.
    """
    largest: dict[int, int] = {}
    sizes = test.histograms.sum(axis=1)
    for region in np.flatnonzero(test.labels >= 0):
        owner = int(test.owners[region])
        other = largest.get(owner, region)
        rank, best = ((test.labels[r] != background, sizes[r]) for r in (region, other))
        largest[owner] = int(region) if rank >= best else other
    by_class: dict[int, list[int]] = {}
    # A fixed shuffle: neighbours in time look alike.
    for region in np.random.default_rng(0).permutation(list(largest.values())):
        by_class.setdefault(int(test.labels[region]), []).append(int(region))
    turns = chain.from_iterable(zip_longest(*(by_class[label] for label in sorted(by_class))))
    chosen = [region for region in turns if region is not None][:count]
    return sorted(chosen, key=lambda region: int(test.owners[region]))


def retrieval_picture(
    path: Path,
    *,
    queries: Sequence[int],
    bank: RegionSet,
    test: RegionSet,
    retrieval: Retrieval,
    bank_pairs: Pairs,
    test_pairs: Pairs,
    scheme: LabelScheme,
    size: tuple[int, int],
    background: int | None,
    title: str,
) -> None:
    """Write a PNG with a row per query: the region outlined in its image, five bank regions, prediction, ground truth.

    Args:
        path: the PNG.
        queries: positions in ``test``.
        bank: regions of the training images.
        test: regions of the test images.
        retrieval: of ``test`` from ``bank``.
        bank_pairs: the training images.
        test_pairs: the test images.
        scheme: classes.
        size: height and width the images were resized to.
        background: class of pixels outside all regions, or None.
        title: above the grid.
    """
    shown = min(NEIGHBOURS, len(bank.labels))
    columns = shown + 3
    height, width = CELL * size[0] / size[1] + 0.3, CELL
    head, foot = 0.5, 0.55
    total = head + foot + height * len(queries)
    figure = Figure(figsize=(width * columns, total), dpi=110)
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.12 / total, title, fontsize=10, va="top")
    grid = figure.add_gridspec(
        len(queries),
        columns,
        left=0.005,
        right=0.995,
        bottom=foot / total,
        top=1 - head / total,
        wspace=0.04,
        hspace=0.22,
    )
    colours = class_colours(scheme.count, background)
    scores, found = most_similar(np.ascontiguousarray(test.embeddings[list(queries)]), bank.embeddings, shown)
    used: set[int] = set()
    for row, query in enumerate(queries):
        owner = int(test.owners[query])
        image = _image(test_pairs.images[owner], size)
        truth = resize_nearest(read_labels(test_pairs.labels[owner], scheme), size)
        guess = predicted_map(test, retrieval.predictions, owner, size, background, scheme.count)
        panels = [
            (_outlined(image, _mask(test, query, size), QUERY_COLOUR), f"query: {scheme.names[test.labels[query]]}")
        ]
        for score, region in zip(scores[row], found[row]):
            source = _image(bank_pairs.images[int(bank.owners[region])], size)
            crop = _region_crop(source, _mask(bank, int(region), size))
            panels.append((crop, f"{scheme.names[bank.labels[region]]}  {score:.3f}"))
        panels += [(colours[guess], "predicted"), (colours[truth], "ground truth")]
        used |= set(np.unique(guess).tolist()) | set(np.unique(truth).tolist())
        for column, (picture, caption) in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set_title(caption, fontsize=8, pad=2, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
    names = [*scheme.names, "void"]
    handles = [Patch(facecolor=colours[c] / 255, edgecolor="#888888", label=names[c]) for c in sorted(used)]
    figure.legend(handles=handles, loc="lower center", ncols=min(8, len(handles)), frameon=False, fontsize=8)
    figure.savefig(path)


def predicted_map(
    test: RegionSet, predictions: np.ndarray, image: int, size: tuple[int, int], background: int | None, void: int
) -> np.ndarray:
    """(H, W) int64 predicted classes of one test image; cells of no region are background, or void without one."""
    table = np.full(NO_REGION + 1, void if background is None else background)
    own = test.owners == image
    table[test.numbers[own]] = predictions[own]
    return enlarge(table[test.maps[image]], size)


def _mask(regions: RegionSet, region: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool pixels of a region."""
    return enlarge(regions.maps[regions.owners[region]] == regions.numbers[region], size)


def _image(path: Path, size: tuple[int, int]) -> np.ndarray:
    return T.resize(read_image(path), list(size), antialias=True).permute(1, 2, 0).numpy()


def _outlined(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image, darker outside the region, with the region's outline."""
    output = np.where(mask[..., None], image, image * 0.6).astype(np.uint8)
    width = max(1, max(mask.shape) // 170)
    edge = binary_dilation(mask, iterations=width) & ~binary_erosion(mask, iterations=width, border_value=1)
    output[edge] = colour
    return output


def _region_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The outlined region with a little of its surroundings, in the shape of the image."""
    outlined = _outlined(image, mask, NEIGHBOUR_COLOUR)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return outlined
    share = max((rows[-1] - rows[0] + 1) / mask.shape[0], (columns[-1] - columns[0] + 1) / mask.shape[1])
    share = min(1.0, max(0.3, 1.25 * share))
    windows = []
    for found, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        side = max(1, round(share * length))
        start = int(np.clip(round((found[0] + found[-1] + 1 - side) / 2), 0, length - side))
        windows.append(slice(start, start + side))
    return outlined[windows[0], windows[1]]


def _voc_colour(index: int) -> tuple[int, int, int]:
    """The colour map of the VOC development kit: the bits of the index, spread over the channels from the top."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return tuple(channels)
