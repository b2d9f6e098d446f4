"""Multi-task learning on real photos of people: human parts, saliency and edges from Clothing Co-Parsing.

    python benchmarks/ccp300.py --root ccp300 --out runs/ccp300 [--height 192]          # convert only
    python benchmarks/ccp300.py --root ccp300 --out runs/ccp300 --train --weights RUN   # and train RCM on the CPU

``--root`` is the unpacked subset: ``photos/*.jpg``, ``annotations/pixel-level/*.mat``, ``label_list.mat`` (300 street
photos, 59 labels of clothes and body; Yang, Luo and Lin, CVPR 2014). It is only read. ``OUT/data`` gets the folder
layout of ``data.kind=folder``; every fifth photo is for evaluation (240 / 60).

Human parts are those of PASCAL-Part (7 classes). The labels name clothes, not limbs, and all photos show one standing
person from head to foot, so what a garment or bare skin covers follows from how far down the person it is:

| label | part |
|---|---|
| hair, hat, glasses, sunglasses, earrings | head |
| skin, down to the chin (0.15 of the height) | head |
| skin, below, within 0.05 heights of the middle of the body, down to 0.28 | torso (neck, neckline) |
| skin, else down to 0.36 / 0.53 / 0.73 / below | upper arms / lower arms / upper legs / lower legs |
| gloves, bracelet, watch, ring | lower arms |
| shoes of all kinds, socks | lower legs |
| all other clothes (sleeves too) | torso, below the hip (0.50) upper legs, below the knee (0.73) lower legs |
| pants, jeans, leggings, tights, stockings, skirt, shorts, panties | the same with the hip at 0.38 |
| bag, purse, wallet, accessories | void |

That is coarse (a raised hand counts as an upper arm) but consistent, so it can be learnt.

Saliency: everything but the background. Edges: thinned boundaries of the label map, as PASCAL-Context has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from polyscene.downstream.multitask.data.files import read_mat
from polyscene.downstream.multitask.data.pascal_context import label_boundaries
from polyscene.downstream.multitask.tasks.parts import PART_NAMES
from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer, make_folder, write_text

TASKS = ("parts", "saliency", "edges")
VOID = 255
HEAD, TORSO, UPPER_ARMS, LOWER_ARMS, UPPER_LEGS, LOWER_LEGS = range(1, 7)

# Rows of a standing person, as shares of the height from the top.
CHIN, NECKLINE, ELBOW, WAIST, HIP, HAND, KNEE = 0.15, 0.28, 0.36, 0.38, 0.50, 0.53, 0.73
NECK_HALF_WIDTH = 0.05

ON_HEAD = frozenset({"hair", "hat", "glasses", "sunglasses", "earrings"})
ON_HANDS = frozenset({"gloves", "bracelet", "watch", "ring"})
ON_LEGS = frozenset({"pants", "jeans", "leggings", "tights", "stockings", "skirt", "shorts", "panties"})
ON_FEET = frozenset(
    {"boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers", "socks", "wedges"}
)
CARRIED = frozenset({"bag", "purse", "wallet", "accessories"})
BACKGROUND, SKIN = "null", "skin"


def human_parts(labels: np.ndarray, names: list[str]) -> np.ndarray:
    """Label map of clothes -> parts of people, by this module's table.

    Args:
        labels: (H, W) numbers into ``names``.
        names: of the labels.

    Returns:
        (H, W) uint8: 0 background, 1 to 6 the parts, 255 void.
    """
    of = {name: np.isin(labels, [names.index(n) for n in group]) for name, group in _groups(names).items()}
    parts = np.zeros(labels.shape, dtype=np.uint8)
    body = ~(of["background"] | of["carried"])
    if body.any():
        down, aside = _position(body)
        clothes = np.select([down < HIP, down < KNEE], [TORSO, UPPER_LEGS], LOWER_LEGS)
        skin = np.select([down < ELBOW, down < HAND, down < KNEE], [UPPER_ARMS, LOWER_ARMS, UPPER_LEGS], LOWER_LEGS)
        skin[(down < NECKLINE) & (aside < NECK_HALF_WIDTH)] = TORSO
        skin[down < CHIN] = HEAD
        for name, values in {
            "clothes": clothes,
            "skin": skin,
            "legs": np.select([down < WAIST, down < KNEE], [TORSO, UPPER_LEGS], LOWER_LEGS),
            "head": np.full(labels.shape, HEAD),
            "hands": np.full(labels.shape, LOWER_ARMS),
            "feet": np.full(labels.shape, LOWER_LEGS),
        }.items():
            parts[of[name]] = values[of[name]]
    parts[of["carried"]] = VOID
    return parts


def _groups(names: list[str]) -> dict[str, set[str]]:
    groups = {"background": {BACKGROUND}, "skin": {SKIN}, "head": ON_HEAD, "hands": ON_HANDS, "legs": ON_LEGS}
    groups |= {"feet": ON_FEET, "carried": CARRIED}
    missing = sorted(set().union(*groups.values()) - set(names))
    if missing:
        raise UserError(f"label_list.mat has no label '{missing[0]}'; is it the list of Clothing Co-Parsing?")
    return {**groups, "clothes": set(names) - set().union(*groups.values())}


def _position(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel, in heights of the person: how far it is below the top, and beside the middle of its row's body.

    The middle is that of the shoulders' rows (down to 0.4), so that a step or a swinging skirt does not move it.
    """
    rows, columns = np.nonzero(body)
    top, height = rows.min(), np.ptp(rows) + 1
    y, x = np.mgrid[: body.shape[0], : body.shape[1]]
    upper = columns[rows < top + 0.4 * height]
    return (y - top) / height, np.abs(x - np.median(upper)) / height


def convert(root: Path, out: Path, height: int | None) -> dict[str, list[str]]:
    """Write photos and targets in the layout of ``data.kind=folder``.

    Args:
        root: the unpacked subset.
        out: folder to write; what is in it already is written again.
        height: pixels that photos are reduced to; None: as they are.

    Returns:
        Split -> names.

    Raises:
        UserError: something of the subset is missing or damaged.
    """
    names = [str(entry.item()) for entry in read_mat(root / "label_list.mat", "label_list").ravel()]
    found = sorted(path.stem for path in (root / "photos").glob("*.jpg"))
    if not found:
        raise UserError(f"'{root}' holds no photos/*.jpg; unpack the Clothing Co-Parsing subset there")
    for name in found:
        labels = read_mat(root / "annotations" / "pixel-level" / f"{name}.mat", "groundtruth")
        photo = Image.open(root / "photos" / f"{name}.jpg").convert("RGB")
        if photo.size != labels.shape[::-1]:
            raise UserError(f"photo '{name}' is {photo.size}, its labels {labels.shape[::-1]}; unpack both again")
        if height is not None:
            size = (round(photo.width * height / photo.height), height)
            photo = photo.resize(size, Image.Resampling.LANCZOS)
            labels = np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        pictures = {
            "images": photo,
            "parts": Image.fromarray(human_parts(labels, names)),
            "saliency": _mask(labels != names.index(BACKGROUND)),
            "edges": _mask(label_boundaries(labels)),
        }
        for folder, picture in pictures.items():
            _save(picture, out / folder / f"{name}.{'jpg' if folder == 'images' else 'png'}")
    splits = {"val": found[4::5], "train": [name for i, name in enumerate(found) if i % 5 != 4]}
    for split, listed in splits.items():
        write_text(out / f"{split}.txt", "".join(f"{name}\n" for name in listed))
    write_text(out / "parts.txt", "".join(f"{name}\n" for name in PART_NAMES))
    return splits


def _mask(chosen: np.ndarray) -> Image.Image:
    return Image.fromarray(chosen.astype(np.uint8) * 255)


def _save(picture: Image.Image, path: Path) -> None:
    make_folder(path.parent)
    with atomic_writer(path) as file:
        if path.suffix == ".jpg":
            picture.save(file, "JPEG", quality=95)
        else:
            picture.save(file, "PNG")


def training_config(options: argparse.Namespace) -> dict:
    """RCM with the three tasks, sized for a CPU: whole small photos (a part is known by its place) and small heads."""
    return {
        "out": str(options.out / "rcm"),
        "seed": options.seed,
        "device": "cpu",
        "weights": options.weights,
        "arch": None if options.weights != "random" else options.arch,
        "tasks": list(TASKS),
        "batch_size": 8,
        "iterations": options.iterations,
        "data": {"kind": "folder", "root": str(options.out / "data"), "workers": 0},
        "model": {"kind": "rcm", "head_width": 32, "rcm": {"init_count": 100}},
        "augmentation": {"recipe": "mti_net_pascal", "size": [192, 128]},
        "optim": {"kind": "adam", "lr": 0.005},
        "checkpoint": {"every_minutes": 1},
        "log": {"every": 25, "tensorboard": False},
    }


def train(options: argparse.Namespace) -> None:
    """Train (or continue) and print the results.

    Raises:
        SystemExit: the command failed.
    """
    config = options.out / "rcm.yaml"
    write_text(config, yaml.safe_dump(training_config(options), sort_keys=False))
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "polyscene.launch.cli", "multitask", str(config)]
    code = subprocess.run(command, env=environ).returncode
    if code:
        raise SystemExit(f"failed with exit code {code}: {' '.join(command[2:])}")
    print(results_table(json.loads((options.out / "rcm" / "results.json").read_text(encoding="utf-8"))))


def results_table(results: dict) -> str:
    """The main metric of every task as a Markdown table."""
    keys = {"parts": "parts_miou", "saliency": "saliency_iou", "edges": "edges_odsf"}
    cells = [f"{100 * results[keys[task]]:.1f}%" for task in TASKS]
    heads = ["parts, mIoU", "saliency, IoU", "edges, odsF"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * 3, cells))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the unpacked subset; only read")
    parser.add_argument("--out", type=Path, default=Path("runs/ccp300"), help="gets data/, and rcm/ with --train")
    parser.add_argument(
        "--height", type=int, help="reduce the photos to this height; default: as they are, 192 to train"
    )
    parser.add_argument("--train", action="store_true", help="train RCM afterwards")
    parser.add_argument("--weights", default="random", help="pretrained backbone: run directory, file, or random")
    parser.add_argument("--arch", default="resnet18", help="with --weights random")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    if options.height is None and options.train:
        options.height = 192
    return options


def main(options: argparse.Namespace) -> None:
    splits = convert(options.root, options.out / "data", options.height)
    print(f"'{options.out / 'data'}': {len(splits['train'])} images to train on, {len(splits['val'])} to evaluate on")
    if options.train:
        train(options)


if __name__ == "__main__":
    try:
        main(parse())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
