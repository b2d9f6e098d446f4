"""Multi-task models on the built-in rooms, several seeds: three studies.

    python benchmarks/multitask_scenes.py encoder     --jobs 2 --markdown docs/results.md
    python benchmarks/multitask_scenes.py interaction --jobs 2 --markdown docs/results.md
    python benchmarks/multitask_scenes.py balancing   --jobs 2 --markdown docs/results.md

``encoder``: what the encoder should share: single-task, frozen, RCM and multi-task models of four tasks
(segmentation, depth, normals, edges). ``interaction``: how tasks should use each other: single-task and multi-task
networks, PAD-Net and MTI-Net of segmentation and depth on four scales. ``balancing``: strategies of task balancing on
the multi-task network of four tasks.

The initialisations are random weights and the backbone of the demo's pretraining on the same rooms (``balancing``: the
latter alone); ``--init NAME=WEIGHTS`` adds others. All models of a study train for the same number of steps on the same
images in the same order. Delta is the mean relative gain over the single-task models of the same initialisation and
seed; above 0 is better.

The sweep is a folder of ordinary runs. Stop it at any moment; the same command continues it. Whatever is finished is
read, not repeated. Another --iterations or --lr needs another --out.
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from polyscene.runtime.files import make_folder, write_text
from polyscene.runtime.run import environment


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

COMMON = {
    "device": "cpu",
    "precision": "bf16",
    "batch_size": 8,
    "data": {"kind": "nyud", "max_val": 40, "workers": 0},
    "augmentation": {"recipe": "mti_net_nyud", "size": [96, 128]},
    "optim": {"kind": "adam"},
    "evaluate": {"stretch": [96, 128], "pictures": 2},
    "checkpoint": {"every_minutes": 1},
    "log": {"every": 25, "tensorboard": False},
}
"""What all runs share. Of the published recipes for NYUD, that of MTI-Net (whole images, zoom, flip, Adam): depth and
normals of whole rooms are learnt in fewer steps than those of crops."""
FPN = {"pyramid_width": 32, "pad_net": {"width": 64}}
"""A narrow network on four scales, in the proportions of the backbone."""


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        title: of the row.
        words: keys of the config that make the model.
    """

    title: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Models that are compared under one recipe.

    Attributes:
        name: of the study.
        tasks: that are judged.
        config: what its runs share.
        models: rows by name; ``single`` is the one that Delta compares with.
        iterations: steps, unless the command says otherwise.
        random: whether random weights are an initialisation too.
        verdict: two rows of which the first should be better on every task, and what to call them; or None.
    """

    name: str
    tasks: tuple[str, ...]
    config: Mapping[str, object]
    models: Mapping[str, Model]
    iterations: int
    random: bool = True
    verdict: tuple[str, str, str, str] | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of its tasks."""
        return tuple(column for column in COLUMNS if column.task in self.tasks)

    @property
    def marks(self) -> tuple[str, str]:
        """Lines of a Markdown file that enclose its table."""
        return f"<!-- multitask {self.name}: begin -->", f"<!-- multitask {self.name}: end -->"


def _kind(title: str, *words: str) -> Model:
    return Model(title, tuple(f"model.{word}" for word in words))


ENCODER = Study(
    "encoder",
    ("segmentation", "depth", "normals", "edges"),
    {**COMMON, "model": {"head_width": 32, "rcm": {"init_count": 100}}},
    {
        "single": _kind("single-task", "kind=single"),
        "frozen": _kind("frozen encoder", "kind=frozen"),
        "rcm": _kind("RCM", "kind=rcm"),
        "multi_task": _kind("multi-task", "kind=multi_task"),
    },
    iterations=200,
    verdict=("rcm", "frozen", "RCM", "the frozen encoder"),
)
MTI_NET = _kind("MTI-Net", "kind=mti_net")
INTERACTION = Study(
    "interaction",
    ("segmentation", "depth"),
    # The published weights of the auxiliary tasks: losses of similar size.
    {**COMMON, "model": FPN, "task_weights": {"normals": 10, "edges": 50}},
    {
        "single": _kind("single-task", "kind=single", "head=aggregation"),
        "multi_task": _kind("multi-task", "kind=multi_task", "head=aggregation"),
        "pad_net": _kind("PAD-Net", "kind=pad_net"),
        "mti_net_no_fpm": _kind("MTI-Net without FPM", "kind=mti_net", "mti_net.fpm=false"),
        "mti_net": MTI_NET,
        "mti_net_auxiliary": Model(
            "MTI-Net, auxiliary normals and edges", (*MTI_NET.words, "auxiliary_tasks=[normals, edges]")
        ),
    },
    iterations=150,
    verdict=("mti_net", "multi_task", "MTI-Net", "the multi-task network"),
)


def _balanced(title: str, *words: str) -> Model:
    return Model(title, ("model.kind=multi_task", *(f"balancing.{word}" for word in words)))


BALANCING = Study(
    "balancing",
    ("segmentation", "depth", "normals", "edges"),
    {**COMMON, "model": {**FPN, "head": "aggregation"}},
    {
        "single": _kind("single-task", "kind=single"),
        "fixed": Model("fixed (1, 1, 10, 50)", ("model.kind=multi_task", "task_weights={normals: 10, edges: 50}")),
        "uniform": _balanced("uniform", "strategy=uniform"),
        "uncertainty": _balanced("uncertainty", "strategy=uncertainty"),
        "gradnorm": _balanced("GradNorm", "strategy=gradnorm"),
        "dwa": _balanced("DWA", "strategy=dwa"),
        "dtp": _balanced("DTP", "strategy=dtp"),
        "mgda": _balanced("MGDA", "strategy=mgda"),
        "similar_losses": _balanced("similar losses (heuristic 2)", "strategy=similar_losses", "measure_iterations=20"),
    },
    iterations=150,
    random=False,
)
STUDIES = {study.name: study for study in (ENCODER, INTERACTION, BALANCING)}

Values = Mapping[int, float]


class Sweep:
    """The runs of one experiment under one folder."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.study = STUDIES[options.study]
        self.out = Path(options.out)
        self.scenes = Path(options.scenes)
        self.inits = {"random": "random"} if self.study.random else {}
        self.inits["SSL"] = options.pretrained
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

    def folder(self, init: str, model: str, seed: int) -> Path:
        return self.out / f"{init}_{model}_seed{seed}"

    def words(self, init: str, model: str, seed: int) -> list[str]:
        """The command of one run, without the config's name."""
        words = [
            f"out={self.folder(init, model, seed)}",
            f"weights={self.inits[init]}",
            f"seed={seed}",
            f"iterations={self.options.iterations}",
            f"optim.lr={self.options.lr}",
            f"data.root={self.scenes / 'NYUD_MT'}",
            *self.study.models[model].words,
        ]
        if init == "random":
            words.append(f"arch={self.options.arch}")
        if model != "single":
            words.append(f"evaluate.single={self.folder(init, 'single', seed)}")
        return words

    def config(self) -> dict[str, object]:
        """What the runs share."""
        return {**self.study.config, "tasks": list(self.study.tasks)}

    def prepare(self) -> None:
        """Scenes and the pretrained backbone, where they do not exist."""
        make_folder(self.out)
        write_text(self.out / "config.yaml", yaml.safe_dump(self.config(), sort_keys=False))
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
                    for models in (["single"], [model for model in self.study.models if model != "single"]):
                        jobs = [(init, model, seed) for model in models for init in self.inits]
                        list(pool.map(self.train, jobs))
        text = self.report()
        print(text)
        if self.options.markdown:
            insert(Path(self.options.markdown), text, *self.study.marks)

    def results(self, init: str, model: str) -> dict[int, dict]:
        """Seed -> results.json, of the seeds that are finished."""
        paths = {seed: self.folder(init, model, seed) / "results.json" for seed in self.options.seeds}
        return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items() if path.exists()}

    def report(self) -> str:
        """The table and the verdicts as Markdown, and everything as a JSON file."""
        study = self.study
        table, trained, record = {}, {}, {}
        for init in self.inits:
            for model in study.models:
                results = self.results(init, model)
                if results:
                    columns = (*study.columns, DELTA)
                    table[init, model] = {c.key: values_of(results.values(), results, c) for c in columns}
                    resources = next(iter(results.values()))["protocol"]["resources"]
                    trained[init, model] = resources["trained"]
                    record.setdefault(init, {})[model] = {**table[init, model], "resources": resources}
        lines = [*markdown_table(study, table, trained), ""]
        verdicts = {}
        if study.verdict:
            ours, theirs, *names = study.verdict
            for init in self.inits:
                found = verdict(study.columns, table.get((init, ours), {}), table.get((init, theirs), {}))
                verdicts |= {init: found} if found else {}
            lines += [f"- {init}: {sentence(found, *names)}" for init, found in verdicts.items()]
        description = {
            "study": study.name,
            "iterations": self.options.iterations,
            "learning_rate": self.options.lr,
            "seeds": self.options.seeds,
            "config": self.config(),
            "models": {name: list(model.words) for name, model in study.models.items()},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.options.threads} thread(s) a job",
            "date": time.strftime("%Y-%m-%d"),
            "environment": environment(),
            "results": record,
            "verdict": {"better": study.verdict, "by_seed": verdicts} if study.verdict else None,
        }
        path = Path(self.options.json)
        make_folder(path.parent)
        write_text(path, json.dumps(description, indent=2) + "\n")
        return "\n".join(lines)


def values_of(results: Iterable[dict], seeds: Iterable[int], column: Column) -> dict[int, float]:
    """Seed -> the value of a column, of the runs that have it."""
    return {seed: found[column.key] for seed, found in zip(seeds, results) if column.key in found}


def markdown_table(
    study: Study, table: Mapping[tuple[str, str], Mapping[str, Values]], trained: Mapping[tuple[str, str], int]
) -> list[str]:
    """One row an initialisation and model: mean ± standard deviation over seeds.

    Args:
        study: whose models and tasks they are.
        table: (initialisation, model) -> results key -> seed -> value.
        trained: (initialisation, model) -> trained parameters.
    """
    heads = ["initialisation", "model", "trained", "seeds", *(column.head for column in (*study.columns, DELTA))]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (init, model), values in table.items():
        seeds = str(len(values[study.columns[0].key]))
        cells = [init, study.models[model].title, f"{trained[init, model] / 1e6:.1f} M", seeds]
        cells += [_cell(values[column.key], column) for column in study.columns]
        cells.append("0" if model == "single" else _cell(values[DELTA.key], DELTA))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(values: Values, column: Column) -> str:
    """``27.61 ± 0.43``, with a sign for Delta."""
    if not values:
        return "-"
    shown = [column.factor * value for value in values.values()]
    text = f"{statistics.mean(shown):{'+' if column is DELTA else ''}.{column.digits}f}"
    return text + (f" ± {statistics.stdev(shown):.{column.digits}f}" if len(shown) > 1 else "")


def verdict(
    columns: Sequence[Column], ours: Mapping[str, Values], theirs: Mapping[str, Values]
) -> dict[str, list[bool]]:
    """Task -> for every seed that both models have, whether the first is better."""
    found = {}
    for column in columns:
        first, second = ours.get(column.key, {}), theirs.get(column.key, {})
        common = sorted(first.keys() & second.keys())
        if common:
            sign = 1 if column.higher else -1
            found[column.task] = [sign * (first[seed] - second[seed]) > 0 for seed in common]
    return found


def sentence(found: Mapping[str, list[bool]], ours: str, theirs: str) -> str:
    """The verdict in words."""
    seeds = len(next(iter(found.values())))
    if all(all(better) for better in found.values()):
        return f"{ours} beats {theirs} on every task: yes, in every one of {seeds} seeds"
    counts = ", ".join(f"{task} {sum(better)} of {seeds}" for task, better in found.items())
    return f"{ours} beats {theirs} on every task: no (seeds in which it does: {counts})"


def insert(path: Path, text: str, begin: str, end: str) -> None:
    """Replace what lies between the two marks of a Markdown file.

    Raises:
        SystemExit: the file has no marks.
    """
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise SystemExit(f"'{path}' has no lines '{begin}' and '{end}'; add them where the table should go")
    head, rest = content.split(begin, 1)
    write_text(path, f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--scenes", default="runs/demo/scenes", help="of polyscene scenes; drawn if it does not exist")
    parser.add_argument("--pretrained", default="runs/demo/pretrain", help="SSL backbone; pretrained if not there")
    parser.add_argument("--init", action="append", default=[], metavar="NAME=WEIGHTS", help="one more initialisation")
    parser.add_argument("--arch", default="resnet10t", help="of random weights; that of the pretrained backbone")
    parser.add_argument("--iterations", type=int, help="steps of a run; 200 for encoder, 150 for the others")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate of Adam; %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", help="folder of the runs; runs/multitask_STUDY")
    parser.add_argument("--json", help="file for all numbers; benchmarks/results/multitask_STUDY.json")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    parser.add_argument("--report-only", action="store_true", help="write the table of what is finished so far")
    parser.add_argument("--markdown", help="file whose marked part gets the table, such as docs/results.md")
    options = parser.parse_args(arguments)
    options.iterations = options.iterations or STUDIES[options.study].iterations
    options.out = options.out or f"runs/multitask_{options.study}"
    options.json = options.json or f"benchmarks/results/multitask_{options.study}.json"
    return options


if __name__ == "__main__":
    Sweep(parse()).run()
