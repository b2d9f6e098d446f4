"""What the encoder should share: single-task, frozen, RCM and multi-task models on the built-in rooms, several seeds.

    python benchmarks/multitask_scenes.py --jobs 2 --markdown docs/results.md

Four tasks (segmentation, depth, normals, edges) from two initialisations: random weights, and the backbone of the
demo's pretraining on the same rooms; ``--init NAME=WEIGHTS`` adds others. All models train for the same number of steps
on the same images in the same order, one run for all four tasks: where tasks own their parameters, their losses are
added, which equals separate runs. Delta is the mean relative gain over the single-task models of the same
initialisation and seed; above 0 is better.

The sweep is a folder of ordinary runs. Stop it at any moment; the same command continues it. Whatever is finished is
read, not repeated. Another --iterations needs another --out.
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
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run import environment

BEGIN, END = "<!-- multitask scenes: begin -->", "<!-- multitask scenes: end -->"


@dataclass(frozen=True)
class Column:
    """The main metric of a task.

    Attributes:
        task: name.
        key: in results.json.
        head: of the table's column.
        factor: from results.json to what is shown.
        digits: that are shown.
        higher: whether higher is better.
    """

    task: str
    key: str
    head: str
    factor: float
    digits: int
    higher: bool


COLUMNS = (
    Column("segmentation", "segmentation_miou", "segmentation, mIoU %", 100, 2, True),
    Column("depth", "depth_rmse", "depth, RMSE m", 1, 3, False),
    Column("normals", "normals_mean", "normals, mean deg", 1, 2, False),
    Column("edges", "edges_odsf", "edges, odsF %", 100, 2, True),
)
DELTA = Column("all", "delta", "Delta %", 100, 2, True)

KINDS = {"single": "single-task", "frozen": "frozen encoder", "rcm": "RCM", "multi_task": "multi-task"}

CONFIG = {
    "device": "cpu",
    "precision": "bf16",
    "tasks": [column.task for column in COLUMNS],
    "batch_size": 8,
    "data": {"kind": "nyud", "max_val": 40, "workers": 0},
    "model": {"head_width": 32, "rcm": {"init_count": 100}},
    "augmentation": {"recipe": "mti_net_nyud", "size": [96, 128]},
    "optim": {"kind": "adam", "lr": 0.005},
    "evaluate": {"stretch": [96, 128], "pictures": 2},
    "checkpoint": {"every_minutes": 1},
    "log": {"every": 25, "tensorboard": False},
}
"""What all runs share. Of the published recipes for NYUD, that of MTI-Net (whole images, zoom, flip, Adam): depth and
normals of whole rooms are learnt in fewer steps than those of crops."""

Values = Mapping[int, float]


class Sweep:
    """The runs of one experiment under one folder."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out = Path(options.out)
        self.scenes = Path(options.scenes)
        self.inits = {"random": "random", "SSL": options.pretrained}
        self.inits |= dict(entry.split("=", 1) for entry in options.init)

    def polyscene(self, *words: str) -> None:
        """Run a command; its output goes to sweep.log.

        Raises:
            SystemExit: it failed.
        """
        environ = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads)}
        with open(self.out / "sweep.log", "a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "polyscene.launch.cli", *words]
            result = subprocess.run(command, stdout=log, stderr=log, env=environ)
        if result.returncode:
            raise SystemExit(f"failed with exit code {result.returncode}: polyscene {' '.join(words)} (sweep.log)")

    def folder(self, init: str, kind: str, seed: int) -> Path:
        return self.out / f"{init}_{kind}_seed{seed}"

    def words(self, init: str, kind: str, seed: int) -> list[str]:
        """The command of one run, without the config's name."""
        words = [
            f"out={self.folder(init, kind, seed)}",
            f"weights={self.inits[init]}",
            f"seed={seed}",
            f"iterations={self.options.iterations}",
            f"data.root={self.scenes / 'NYUD_MT'}",
            f"model.kind={kind}",
        ]
        if init == "random":
            words.append(f"arch={self.options.arch}")
        if kind != "single":
            words.append(f"evaluate.single={self.folder(init, 'single', seed)}")
        return words

    def prepare(self) -> None:
        """Scenes and the pretrained backbone, where they do not exist."""
        make_folder(self.out)
        write_text(self.out / "config.yaml", yaml.safe_dump(CONFIG, sort_keys=False))
        if not (self.scenes / "NYUD_MT").is_dir():
            print(f"drawing scenes: '{self.scenes}'", flush=True)
            self.polyscene("scenes", str(self.scenes))
        pretrained = Path(self.options.pretrained)
        if not pretrained.is_file() and not (pretrained / "backbone.safetensors").exists():
            print(f"pretraining the demo's backbone: '{pretrained}'", flush=True)
            images = self.scenes / "images"
            self.polyscene(
                *("pretrain", "pretrain/quickstart", f"out={pretrained}", "device=cpu"),
                *(f"data.root={images / 'train'}", f"online_knn.held_out={images / 'val'}"),
            )

    def train(self, job: tuple[str, str, int]) -> None:
        """One run; a stopped one is continued by the command itself."""
        folder = self.folder(*job)
        if (folder / "results.json").exists():
            return
        started = time.time()
        self.polyscene("multitask", str(self.out / "config.yaml"), *self.words(*job))
        print(f"{folder.name}: {time.time() - started:.0f} s", flush=True)

    def run(self) -> None:
        if not self.options.report_only:
            self.prepare()
            with ThreadPoolExecutor(self.options.jobs) as pool:
                for seed in self.options.seeds:
                    # The single-task models first: Delta of the others needs their results.
                    for kinds in (["single"], [kind for kind in KINDS if kind != "single"]):
                        jobs = [(init, kind, seed) for kind in kinds for init in self.inits]
                        list(pool.map(self.train, jobs))
        text = self.report()
        print(text)
        if self.options.markdown:
            insert(Path(self.options.markdown), text)

    def results(self, init: str, kind: str) -> dict[int, dict]:
        """Seed -> results.json, of the seeds that are finished."""
        paths = {seed: self.folder(init, kind, seed) / "results.json" for seed in self.options.seeds}
        return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items() if path.exists()}

    def report(self) -> str:
        """The table and the verdicts as Markdown, and everything as multitask_scenes.json."""
        table, trained, record = {}, {}, {}
        for init in self.inits:
            for kind in KINDS:
                results = self.results(init, kind)
                if results:
                    table[init, kind] = {c.key: values_of(results.values(), results, c) for c in (*COLUMNS, DELTA)}
                    resources = next(iter(results.values()))["protocol"]["resources"]
                    trained[init, kind] = resources["trained"]
                    record.setdefault(init, {})[kind] = {**table[init, kind], "resources": resources}
        lines = [*markdown_table(table, trained), ""]
        verdicts = {init: verdict(table.get((init, "rcm"), {}), table.get((init, "frozen"), {})) for init in self.inits}
        lines += [f"- {init}: {sentence(found)}" for init, found in verdicts.items() if found]
        description = {
            "iterations": self.options.iterations,
            "seeds": self.options.seeds,
            "config": CONFIG,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.options.threads} thread(s) a job",
            "date": time.strftime("%Y-%m-%d"),
            "environment": environment(),
            "results": record,
            "rcm_against_frozen": verdicts,
        }
        make_folder(Path(self.options.json).parent)
        write_text(Path(self.options.json), json.dumps(description, indent=2) + "\n")
        return "\n".join(lines)


def values_of(results: Iterable[dict], seeds: Iterable[int], column: Column) -> dict[int, float]:
    """Seed -> the value of a column, of the runs that have it."""
    return {seed: found[column.key] for seed, found in zip(seeds, results) if column.key in found}


def markdown_table(
    table: Mapping[tuple[str, str], Mapping[str, Values]], trained: Mapping[tuple[str, str], int]
) -> list[str]:
    """One row an initialisation and model: mean ± standard deviation over seeds.

    Args:
        table: (initialisation, kind) -> results key -> seed -> value.
        trained: (initialisation, kind) -> trained parameters.
    """
    heads = ["initialisation", "model", "trained", "seeds", *(column.head for column in (*COLUMNS, DELTA))]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (init, kind), values in table.items():
        cells = [init, KINDS[kind], f"{trained[init, kind] / 1e6:.1f} M", str(len(values[COLUMNS[0].key]))]
        cells += [_cell(values[column.key], column) for column in COLUMNS]
        cells.append("0" if kind == "single" else _cell(values[DELTA.key], DELTA))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(values: Values, column: Column) -> str:
    """``27.61 ± 0.43``, with a sign for Delta."""
    if not values:
        return "-"
    shown = [column.factor * value for value in values.values()]
    text = f"{statistics.mean(shown):{'+' if column is DELTA else ''}.{column.digits}f}"
    return text + (f" ± {statistics.stdev(shown):.{column.digits}f}" if len(shown) > 1 else "")


def verdict(rcm: Mapping[str, Values], frozen: Mapping[str, Values]) -> dict[str, list[bool]]:
    """Task -> for every seed that both have, whether RCM is better than the frozen encoder."""
    found = {}
    for column in COLUMNS:
        ours, theirs = rcm.get(column.key, {}), frozen.get(column.key, {})
        common = sorted(ours.keys() & theirs.keys())
        if common:
            sign = 1 if column.higher else -1
            found[column.task] = [sign * (ours[seed] - theirs[seed]) > 0 for seed in common]
    return found


def sentence(found: Mapping[str, list[bool]]) -> str:
    """The verdict in words."""
    seeds = len(next(iter(found.values())))
    if all(all(better) for better in found.values()):
        return f"RCM beats the frozen encoder on every task: yes, in every one of {seeds} seeds"
    counts = ", ".join(f"{task} {sum(better)} of {seeds}" for task, better in found.items())
    return f"RCM beats the frozen encoder on every task: no (seeds in which it does: {counts})"


def insert(path: Path, text: str) -> None:
    """Replace what lies between the two marks of a Markdown file.

    Raises:
        SystemExit: the file has no marks.
    """
    content = path.read_text(encoding="utf-8")
    if BEGIN not in content or END not in content:
        raise SystemExit(f"'{path}' has no lines '{BEGIN}' and '{END}'; add them where the table should go")
    head, rest = content.split(BEGIN, 1)
    write_text(path, f"{head}{BEGIN}\n{text.strip()}\n{END}{rest.split(END, 1)[1]}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="runs/demo/scenes", help="of polyscene scenes; drawn if it does not exist")
    parser.add_argument("--pretrained", default="runs/demo/pretrain", help="SSL backbone; pretrained if not there")
    parser.add_argument("--init", action="append", default=[], metavar="NAME=WEIGHTS", help="one more initialisation")
    parser.add_argument("--arch", default="resnet10t", help="of random weights; that of the pretrained backbone")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/multitask_scenes")
    parser.add_argument("--json", default="benchmarks/results/multitask_scenes.json")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    parser.add_argument("--report-only", action="store_true", help="write the table of what is finished so far")
    parser.add_argument("--markdown", help="file whose marked part gets the table, such as docs/results.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Sweep(parse()).run()
