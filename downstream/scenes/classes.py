"""The label set of the built-in scenes and its numbers in NYUD-40, PASCAL-Context-459 and VOC-21."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class SceneClass:
    """One semantic class and its id in the label sets that the layouts use (0 = the set has no such class)."""

    name: str
    nyu: int  # NYUD-40, 1..40
    context: int  # PASCAL-Context, 1..459
    voc: int  # PASCAL VOC, 1..20
    salient: bool  # may be the salient object of a picture


# Class id = position in this tuple + 1; 0 is void. Small wall-mounted or flat things are never salient.
CLASSES = (
    SceneClass("wall", 1, 440, 0, False),
    SceneClass("floor", 2, 158, 0, False),
    SceneClass("ceiling", 22, 68, 0, False),
    SceneClass("door", 8, 115, 0, False),
    SceneClass("window", 9, 454, 0, False),
    SceneClass("picture", 11, 287, 0, False),
    SceneClass("curtain", 16, 105, 0, False),
    SceneClass("rug", 20, 330, 0, False),
    SceneClass("table", 7, 397, 11, True),
    SceneClass("desk", 14, 397, 0, True),
    SceneClass("chair", 5, 72, 9, True),
    SceneClass("sofa", 6, 368, 18, True),
    SceneClass("bed", 4, 18, 0, True),
    SceneClass("pillow", 18, 290, 0, True),
    SceneClass("bookshelf", 10, 349, 0, True),
    SceneClass("books", 23, 33, 0, True),
    SceneClass("cabinet", 3, 46, 0, True),
    SceneClass("night stand", 32, 46, 0, True),
    SceneClass("lamp", 35, 232, 0, True),
    SceneClass("television", 25, 427, 20, True),
    SceneClass("box", 29, 37, 0, True),
    SceneClass("refrigerator", 24, 170, 0, True),
    SceneClass("potted plant", 40, 308, 16, True),
    SceneClass("bottle", 40, 34, 5, True),
    SceneClass("person", 31, 284, 15, True),
    SceneClass("cat", 40, 65, 8, True),
    SceneClass("ball", 40, 10, 0, True),
    SceneClass("building", 0, 44, 0, False),
    SceneClass("road", 0, 324, 0, False),
    SceneClass("sidewalk", 0, 354, 0, False),
    SceneClass("grass", 0, 187, 0, False),
    SceneClass("sky", 0, 360, 0, False),
    SceneClass("car", 0, 59, 7, True),
    SceneClass("bus", 0, 45, 6, True),
    SceneClass("tree", 0, 420, 0, True),
    SceneClass("street lamp", 0, 303, 0, True),
    SceneClass("bench", 0, 22, 0, True),
    SceneClass("sign", 0, 355, 0, True),
)


def class_id(name: str) -> int:
    """Id (1..38) of a class by its name; ``KeyError`` for an unknown name."""
    for number, entry in enumerate(CLASSES, start=1):
        if entry.name == name:
            return number
    raise KeyError(name)


def lookup_table(field: str) -> np.ndarray:
    """Array that maps our class ids (0..38) to ``field`` of :class:`SceneClass`; entry 0 (void) is 0."""
    return np.array([0, *(int(getattr(entry, field)) for entry in CLASSES)], dtype=np.uint16)


def palette(count: int = 256) -> np.ndarray:
    """The PASCAL VOC colour map, (count, 3) uint8: bits of the index spread over the three channels."""
    index = np.arange(count)
    colours = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
