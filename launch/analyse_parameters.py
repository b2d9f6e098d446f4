"""``polyscene analyse parameters``: how every kind of model grows with its tasks."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from polyscene.downstream.multitask.analysis.parameters import TITLES, Growth, parameter_growth
from polyscene.downstream.multitask.analysis.pictures import draw_growth
from polyscene.downstream.multitask.models.build import KINDS, ModelOptions
from polyscene.downstream.multitask.models.families import Options
from polyscene.runtime.config import load_config, to_dict
from polyscene.runtime.errors import UserError
from polyscene.runtime.progress import ProgressBar
from polyscene.runtime.results import Evaluation, Metric, Picture

from .analyse_config import ParametersConfig
from .analyse_run import finish, open_folder, open_model
from .multitask_config import MultitaskConfig
from .multitask_model import model_options, open_weights


def analyse_parameters(config: ParametersConfig) -> int:
    """Build the models, count, draw and write; returns the exit code.

    Raises:
        UserError: no such run or config, or a backbone that is not a plain ResNet.
    """
    options, arch = _subject(config)
    parameter_growth(options, arch, 1, kinds=("frozen",))  # what is wrong with the backbone shows here
    run = open_folder(config, "parameters")
    if run is None:
        return 0
    with ProgressBar(run.console, "models", len(KINDS)) as bar:
        grown = parameter_growth(options, arch, config.tasks, progress=bar.update)
    draw_growth(grown, arch, run.pictures / "parameters.png")
    finish(run, _evaluation(config, options, arch, grown), _table(grown, arch))
    return 0


def _subject(config: ParametersConfig) -> tuple[ModelOptions, str]:
    """Options and backbone of a run or a config."""
    options, arch = _options(config)
    if not isinstance(options, ModelOptions):
        raise UserError(
            f"'{config.runs[0]}' stands on four scales; this analysis compares what models add to one encoder"
        )
    return options, arch


def _options(config: ParametersConfig) -> tuple[Options, str]:
    named = Path(config.runs[0])
    if named.is_dir() or named.suffix == ".safetensors":
        saved = open_model(config.runs[0]).saved
        return saved.options, config.arch or saved.arch
    if config.out is None:
        raise UserError("out is required where a config is analysed; add out=DIR")
    settings = load_config(MultitaskConfig, config.runs[0])
    return model_options(settings), config.arch or settings.arch or open_weights(settings).arch


def _evaluation(config: ParametersConfig, options: ModelOptions, arch: str, grown: dict[str, Growth]) -> Evaluation:
    numbers = {
        kind: {f"{count} task{'s' * (count > 1)}": number / 1e6 for count, number in enumerate(each.encoder, start=1)}
        for kind, each in grown.items()
    }
    return Evaluation(
        command="analyse",
        title=f"Parameters of the {arch} encoder with {config.tasks} tasks, millions",
        subject=f"{arch}, {config.tasks} tasks",
        metrics=[Metric(kind, TITLES[kind], unit="M", better="lower") for kind in grown],
        values={kind: each.encoder[-1] / 1e6 for kind, each in grown.items()},
        per_class={kind: {"weights": each} for kind, each in numbers.items()},
        pictures=[Picture("pictures/parameters.png", f"parameters of the {arch} encoder by the number of tasks")],
        protocol={
            "protocol": "parameters",
            **to_dict(config),
            "arch": arch,
            "reparameterize": options.reparameterize,
            "normalized": options.normalized,
            "rank": options.rank,
            "counted": {
                kind: {"shared": each.shared, "of_task": each.of_task, "encoder": list(each.encoder)}
                for kind, each in grown.items()
            },
            "head": {"kind": options.head, "width": options.head_width, "parameters": grown["rcm"].heads[0]},
        },
    )


def _table(grown: dict[str, Growth], arch: str) -> Table:
    table = Table(title=f"Parameters of the {arch} encoder with 1, 2, ... tasks, millions")
    table.add_column("model", no_wrap=True)
    table.add_column("shared", justify="right")
    table.add_column("a task", justify="right")
    for count in range(1, len(grown["rcm"].encoder) + 1):
        table.add_column(str(count), justify="right")
    for kind, each in grown.items():
        own = sum(each.of_task.values())
        table.add_row(
            TITLES[kind], f"{each.shared / 1e6:.2f}", f"{own / 1e6:.2f}", *(f"{n / 1e6:.2f}" for n in each.encoder)
        )
    return table
