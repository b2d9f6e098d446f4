"""How long a start spends on finding its images: the first time, and from the index that a run keeps.

    python benchmarks/index.py [--images 200000] [--rounds 5] [--folder DIR]

A tree of empty files, 200 in each nested folder, is made in a temporary folder and deleted at the end. The reference is
``os.walk`` with an ``os.stat`` of every file. Ours are ``open_source`` without an index (names, sorted, and labels) and
with one, and the look at size and time of every file by which a packed cache is told from an older one. In one process,
in alternation; ratios are medians over the rounds of ratios within a round. The system remembers the folders, as on any
disk that has been used before: what a network adds is not in these numbers. Printed and written to benchmarks/results/.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from record import load, machine, make_parser, write_record

from polyscene.ssl.index_cache import INDEX_NAME
from polyscene.ssl.packing import source_identity
from polyscene.ssl.sources import open_source

FILES_PER_FOLDER = 200
FOLDERS_PER_FOLDER = 20
REFERENCE = "os.walk + os.stat"
BOUNDS = {"search": 5.0, "saved index": 0.5}
"""Seconds that 200,000 files may take."""


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    words = make_parser(__doc__)
    words.add_argument("--images", type=int, default=200_000)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--folder", type=Path, help="where the tree is made: the file system that is measured")
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "index.json")
    options = words.parse_args(arguments)
    if options.rounds < 1 or options.images < 1:
        raise SystemExit("--rounds and --images must be at least 1")
    with tempfile.TemporaryDirectory(prefix="polyscene-index-", dir=options.folder) as folder:
        root = Path(folder) / "images"
        make_tree(root, options.images)
        results = measure(root, Path(folder) / "run", options.rounds)
    print_table(results, options.images)
    document = {
        "images": options.images,
        "rounds": options.rounds,
        **machine(),
        "load": load(),
        "bounds_seconds": BOUNDS,
        "ways": results,
    }
    write_record(options.out, "index", arguments, document)


def make_tree(root: Path, images: int) -> None:
    """Empty files in nested folders, all of them old enough for an index to be kept."""
    for start in range(0, images, FILES_PER_FOLDER):
        number = start // FILES_PER_FOLDER
        folder = root / f"{number // FOLDERS_PER_FOLDER:03d}" / f"{number:05d}"
        folder.mkdir(parents=True)
        for image in range(start, min(start + FILES_PER_FOLDER, images)):
            os.close(os.open(folder / f"{image:012d}.jpg", os.O_CREAT | os.O_WRONLY))
    past = time.time() - 60
    for folder, _, _ in os.walk(root):
        os.utime(folder, (past, past))


def measure(root: Path, run: Path, rounds: int) -> dict[str, dict[str, float | list[float]]]:
    """Way -> median seconds, median ratio to the reference, and the seconds of each round."""
    source = open_source("folder", root)

    def search() -> None:
        (run / INDEX_NAME).unlink(missing_ok=True)
        open_source("folder", root, cache_dir=run)

    def from_index() -> None:
        open_source("folder", root, cache_dir=run)

    ways: dict[str, Callable[[], object]] = {
        REFERENCE: lambda: walk(root),
        "search": search,  # leaves the index that the next way reads
        "saved index": from_index,
        "sizes and times": lambda: source_identity(source, 384),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first is for warming up
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "seconds": statistics.median(each),
            "ratio": statistics.median(own / reference for own, reference in zip(each, seconds[REFERENCE])),
            "seconds_of_rounds": [round(value, 5) for value in each],
        }
        for name, each in seconds.items()
    }


def walk(root: Path) -> int:
    """The obvious way: bytes of all files."""
    return sum(os.stat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(root) for name in names)


def print_table(results: dict[str, dict[str, float | list[float]]], images: int) -> None:
    """Way, seconds with their spread, ratio to the reference, bound."""
    print(f"{f'{images:,} files':<24}{'seconds':>10}{'from':>10}{'to':>10}{'ratio':>10}{'bound':>10}")
    for name, found in results.items():
        each = found["seconds_of_rounds"]
        bound = f"{BOUNDS[name] * images / 200_000:.2g} s" if name in BOUNDS else ""
        numbers = "".join(f"{value:>10.3f}" for value in (found["seconds"], min(each), max(each)))
        print(f"{name:<24}{numbers}{found['ratio']:>9.3f}x{bound:>10}")


if __name__ == "__main__":
    main()
