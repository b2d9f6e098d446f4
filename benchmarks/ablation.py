"""Table 7.4 of the thesis at small scale: what each ingredient adds, on photos, over several seeds.

    python benchmarks/ablation.py --photos tiny_imagenet40 --transfer caltech30 --preset cpu --seeds 0 1 2

Six arms, each adding one ingredient to the one above it: MoCo, + multi-crop, + constrained crops, + lower momentum,
+ A+ augmentation, + nearest neighbours. Every arm is pretrained once for equal epochs and once for equal time, and
measured frozen: kNN and linear accuracy on the held-out photos; kNN, linear and SVM on the transfer set. Random weights
are measured beside them.

Equal time means equal steps times seconds a step. The seconds are measured first, all arms interleaved, best of three
rounds each: a clock that ran during the trainings would depend on whatever else the machine did.

The sweep is a folder of ordinary runs. Stop it at any moment; the same command continues it, run by run and step by
step. Whatever is finished is read, not repeated. Another preset or other words need another --out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from polyscene.runtime.files import write_text
from polyscene.runtime.run import environment

BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"


@dataclass(frozen=True)
class Arm:
    """A row of the table: a shipped recipe whose ingredients are scaled by the preset."""

    name: str
    recipe: str


ARMS = (
    Arm("MoCo", "coco_moco_200ep"),
    Arm("+ multi-crop", "coco_multicrop_200ep"),
    Arm("+ constrained", "coco_constrained_200ep"),
    Arm("+ lower momentum", "coco_momentum_200ep"),
    Arm("+ A+", "coco_aplus_200ep"),
    Arm("+ kNN", "coco_knn_200ep"),
)


@dataclass(frozen=True)
class Preset:
    """A size of the experiment.

    Attributes:
        epochs: of every arm in the comparison at equal epochs.
        words: keys of the size.
        two_crops: size of MoCo's two crops, pixels.
        large: size of the multi-crop arms' two large crops, pixels.
        small: number and size of their small crops.
        momentum: of the key encoder: usual, lowered.
        neighbours: k and the epoch at which the loss sets in.
    """

    epochs: int
    words: tuple[str, ...]
    two_crops: int
    large: int
    small: tuple[int, int]
    momentum: tuple[float, float]
    neighbours: tuple[int, float]


SHARED = (
    "data.kind=imagenet",
    "model.backbone=resnet18",
    "optim.weight_decay=0.0005",
    "precision=bf16",
    "log.pictures=false",
    "log.tensorboard=false",
    "online_knn.every_epochs=null",
)
PRESETS = {
    # Half an hour of an accelerator for all arms and three seeds.
    "gpu": Preset(
        epochs=200,
        words=(
            "batch_size=256",
            "model.queue=4096",
            "model.norm.group=64",
            "optim.lr=0.12",
            "optim.warmup_epochs=5",
            "data.workers=8",
        ),
        two_crops=64,
        large=56,
        small=(4, 32),
        momentum=(0.999, 0.995),
        neighbours=(20, 0.0),
    ),
    # Two CPU cores: a schedule fifty times shorter at half the resolution, with a queue and momenta that fit it.
    "cpu": Preset(
        epochs=4,
        words=(
            "batch_size=32",
            "model.queue=256",
            "model.norm.group=16",
            "optim.lr=0.03",
            "optim.warmup_epochs=0.2",
            "data.workers=0",
            "device=cpu",
            "checkpoint.every_minutes=2",
        ),
        two_crops=32,
        large=32,
        small=(2, 20),
        momentum=(0.99, 0.97),
        neighbours=(5, 1.0),
    ),
}


@dataclass(frozen=True)
class Measurement:
    """A column: a probe of the frozen backbone.

    Attributes:
        key: folder name.
        label: head of the column.
        metric: key in results.json.
        transfer: on the transfer set instead of the pretraining photos.
        words: config and overrides of ``polyscene probe``.
    """

    key: str
    label: str
    metric: str
    transfer: bool
    words: tuple[str, ...]


KNN, LINEAR, SVM = ("probe/knn_folder",), ("probe/linear_folder",), ("probe/voc_svm", "data.kind=folder")
MEASUREMENTS = (
    Measurement("photos_knn", "kNN", "knn_accuracy", False, KNN),
    Measurement("photos_linear", "linear", "linear_accuracy", False, LINEAR),
    Measurement("transfer_knn", "kNN, transfer", "knn_accuracy", True, KNN),
    Measurement("transfer_linear", "linear, transfer", "linear_accuracy", True, LINEAR),
    Measurement("transfer_svm", "SVM mAP, transfer", "map_area", True, SVM),
)
# Close to the sizes of training, where features of so short a schedule are best.
CROPS = {False: ("resize=48", "crop=48"), True: ("resize=72", "crop=64")}


def arm_words(arm: Arm, preset: Preset) -> list[str]:
    """The preset's sizes for one arm; which ingredients it has, the recipe says."""
    order = [a.name for a in ARMS]
    has = {name: order.index(arm.name) >= order.index(name) for name in order}
    words = [*SHARED, *preset.words, f"views.large.size={preset.large if has['+ multi-crop'] else preset.two_crops}"]
    if has["+ multi-crop"]:
        words += [f"views.small.count={preset.small[0]}", f"views.small.size={preset.small[1]}"]
    words.append(f"model.momentum={preset.momentum[has['+ lower momentum']]}")
    if has["+ kNN"]:
        words += [f"neighbours.k={preset.neighbours[0]}", f"neighbours.start_epoch={preset.neighbours[1]}"]
    return words


class Sweep:
    """The runs of one experiment under one folder."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.preset = PRESETS[options.preset]
        self.out = Path(options.out)
        self.epochs = options.epochs or self.preset.epochs

    def polyscene(self, *words: str) -> None:
        """Run a command; its output goes to ablation.log.

        Raises:
            SystemExit: it failed.
        """
        environ = {**os.environ}
        if self.preset is PRESETS["cpu"]:
            environ["OMP_NUM_THREADS"] = str(self.options.threads)
        command = [sys.executable, "-m", "polyscene.launch.cli", *words]
        with open(self.out / "ablation.log", "a") as log:
            result = subprocess.run(command, stdout=log, stderr=log, env=environ)
        if result.returncode:
            raise SystemExit(f"failed with exit code {result.returncode}: polyscene {' '.join(words)} (ablation.log)")

    def pretrain_words(self, arm: Arm, out: Path, epochs: int, seed: int) -> list[str]:
        root = f"data.root={self.options.photos}"
        words = arm_words(arm, self.preset)
        return ["pretrain", f"pretrain/{arm.recipe}", root, f"out={out}", f"epochs={epochs}", f"seed={seed}", *words]

    def seconds_per_epoch(self, rounds: int = 3, steps: int = 12) -> dict[str, float]:
        """Training seconds an epoch of every arm, measured once and kept: all arms in turn, best of the rounds."""
        path = self.out / "calibration.json"
        if path.exists():
            return json.loads(path.read_text())
        rates: dict[str, float] = {}
        for turn in range(rounds):
            for arm in ARMS:
                folder = self.out / "calibration" / f"{arm.recipe}_{turn}"
                words = self.pretrain_words(arm, folder, self.epochs, 0)
                self.polyscene(
                    *words, f"max_steps={steps}", "log.every=4", "neighbours.start_epoch=0", "overwrite=true"
                )
                rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                # The first rows hold the start-up.
                rates[arm.name] = max(rates.get(arm.name, 0.0), *(row["images_per_second"] for row in rows[1:]))
        images = sum(len(files) for _, _, files in os.walk(Path(self.options.photos) / "train"))
        seconds = {name: images / rate for name, rate in rates.items()}
        write_text(path, json.dumps(seconds, indent=2) + "\n")
        return seconds

    def plan(self, seconds: dict[str, float]) -> list[tuple[Arm, int]]:
        """Arms and epochs to train: equal epochs first, then those whose equal-time epochs differ."""
        slowest = max(seconds.values())
        equal = [(arm, self.epochs) for arm in ARMS]
        timed = [(arm, round(self.epochs * slowest / seconds[arm.name])) for arm in ARMS]
        return equal + [entry for entry in timed if entry not in equal]

    def folder(self, arm: Arm, epochs: int, seed: int) -> Path:
        return self.out / f"{arm.recipe.removeprefix('coco_').removesuffix('_200ep')}_{epochs}ep_seed{seed}"

    def train(self, arm: Arm, epochs: int, seed: int) -> None:
        """One pretraining; a stopped one is continued by the command itself."""
        folder = self.folder(arm, epochs, seed)
        started = time.time()
        if not (folder / "backbone.safetensors").exists():
            self.polyscene(*self.pretrain_words(arm, folder, epochs, seed))
        print(f"{folder.name}: trained ({time.time() - started:.0f} s)", flush=True)

    def measure(self, arm: Arm, epochs: int, seed: int) -> None:
        """The probes of one pretraining, and once a seed those of random weights."""
        folder = self.folder(arm, epochs, seed)
        for measurement in MEASUREMENTS:
            if (folder / measurement.key / "results.json").exists():
                continue
            root = Path(self.options.transfer if measurement.transfer else self.options.photos)
            words = [*measurement.words, f"weights={folder}", f"out={folder / measurement.key}", f"seed={seed}"]
            words += [f"data.train={root / 'train'}", f"data.test={root / ('test' if measurement.transfer else 'val')}"]
            words += [*CROPS[measurement.transfer], f"cache={self.out / 'features'}"]
            if (arm, epochs) != (ARMS[0], self.epochs):
                words.append("baseline=null")
            self.polyscene("probe", *words)
        print(f"{folder.name}: measured", flush=True)

    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        seconds = self.seconds_per_epoch()
        jobs = [(arm, epochs, seed) for seed in self.options.seeds for arm, epochs in self.plan(seconds)]
        stages = [] if self.options.report_only else [self.train, self.measure][: 1 if self.options.train_only else 2]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for stage in stages:
                for _ in pool.map(lambda job, stage=stage: stage(*job), jobs):
                    pass
        if not self.options.train_only:
            text = self.report(seconds)
            print(text)
            if self.options.markdown:
                insert(Path(self.options.markdown), text)

    def values(self, arm: Arm, epochs: int, measurement: Measurement, *, random: bool = False) -> dict[int, float]:
        """Seed -> the measurement, as a share, of the seeds that are measured."""
        found = {}
        for seed in self.options.seeds:
            path = self.folder(arm, epochs, seed) / measurement.key / "results.json"
            if path.exists():
                results = json.loads(path.read_text())
                results = results["baseline"]["random"] if random else results
                found[seed] = results[measurement.metric]
        return found

    def report(self, seconds: dict[str, float]) -> str:
        """Both comparisons as Markdown tables, and everything as ablation.json."""
        slowest = max(seconds.values())
        sections = {
            "Equal epochs": dict.fromkeys(ARMS, self.epochs),
            "Equal time": {arm: round(self.epochs * slowest / seconds[arm.name]) for arm in ARMS},
        }
        lines, record = [], {}
        for title, epochs_of in sections.items():
            rows = {"random": [self.values(ARMS[0], self.epochs, m, random=True) for m in MEASUREMENTS]}
            rows |= {arm.name: [self.values(arm, epochs_of[arm], m) for m in MEASUREMENTS] for arm in ARMS}
            times = {arm.name: epochs_of[arm] * seconds[arm.name] for arm in ARMS}
            lines += [f"**{title}**", "", *markdown_table(rows, {a.name: epochs_of[a] for a in ARMS}, times), ""]
            record[title] = {
                name: {m.key: shares for m, shares in zip(MEASUREMENTS, columns)} for name, columns in rows.items()
            }
        preset = self.preset
        description = {
            "preset": self.options.preset,
            "epochs": self.epochs,
            "seeds": self.options.seeds,
            "words": [*SHARED, *preset.words],
            "seconds_per_epoch": seconds,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.options.threads} thread(s) a job",
            "date": time.strftime("%Y-%m-%d"),
            "environment": environment(),
            "results": record,
        }
        write_text(self.out / "ablation.json", json.dumps(description, indent=2) + "\n")
        return "\n".join(lines)


def markdown_table(
    rows: dict[str, list[dict[int, float]]], epochs: dict[str, int], times: dict[str, float]
) -> list[str]:
    """One row an arm: mean ± standard deviation over seeds in percent, and the mean difference from MoCo.

    Args:
        rows: name -> per measurement, seed -> share; a sweep that was stopped has fewer seeds in some rows.
        epochs: name -> epochs.
        times: name -> training seconds.
    """
    heads = ["", "epochs", "training", "seeds", *(m.label for m in MEASUREMENTS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, columns in rows.items():
        seeds = min(len(column) for column in columns)
        cells = [name, str(epochs.get(name, "-")), f"{times[name]:.0f} s" if name in times else "-", str(seeds)]
        for column, moco in zip(columns, rows["MoCo"]):
            cells.append(_cell(column, None if name in ("MoCo", "random") else moco))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(column: dict[int, float], moco: dict[int, float] | None) -> str:
    """``27.6 ± 0.4 (+1.2)``; the difference is that of the seeds which both have."""
    if not column:
        return "-"
    text = f"{100 * statistics.mean(column.values()):.1f}"
    if len(column) > 1:
        text += f" ± {100 * statistics.stdev(column.values()):.1f}"
    common = sorted(column.keys() & moco.keys()) if moco else []
    if common:
        text += f" ({100 * statistics.mean(column[seed] - moco[seed] for seed in common):+.1f})"
    return text


def insert(path: Path, text: str) -> None:
    """Replace what lies between the two marks of a Markdown file.

    Raises:
        SystemExit: the file has no marks.
    """
    content = path.read_text(encoding="utf-8")
    if BEGIN not in content or END not in content:
        raise SystemExit(f"'{path}' has no lines '{BEGIN}' and '{END}'; add them where the tables should go")
    head, rest = content.split(BEGIN, 1)
    write_text(path, f"{head}{BEGIN}\n{text.strip()}\n{END}{rest.split(END, 1)[1]}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder with train/CLASS/ and val/CLASS/")
    parser.add_argument("--transfer", required=True, help="folder with train/CLASS/ and test/CLASS/")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--out", default="runs/ablation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (preset cpu)")
    parser.add_argument("--train-only", action="store_true", help="measure later")
    parser.add_argument("--report-only", action="store_true", help="write the tables of what is measured so far")
    parser.add_argument("--markdown", help="file whose marked part gets the tables, such as docs/results.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Sweep(parse()).run()
