"""What can be refused about a chain as a whole, before anything is started."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path

from polyscene.runtime.config import differences, to_dict
from polyscene.runtime.errors import UserError
from polyscene.runtime.run import read_run_config

from .chain_config import Chain, Step
from .cluster.command_line import CommandLine, check_processes
from .pretrain_config import PretrainConfig, run_values

# Where every command keeps the keys that may differ when its run is continued.
_HARMLESS = {
    "pretrain": "pretrain_config",
    "multitask": "multitask_config",
    "probe": "evaluation_config",
    "retrieve": "evaluation_config",
    "propagate": "evaluation_config",
    "cam": "evaluation_config",
}


def check_chain(chain: Chain, finished: Collection[str]) -> None:
    """Refuse steps that cannot run, or not in this order.

    Args:
        chain: the chain.
        finished: names of the steps that are done and will not run; their data may be gone.

    Raises:
        UserError: naming the step and the remedy.
    """
    _check_outputs(chain)
    for step in chain.steps:
        try:
            _check_config(step.command)
            if step.name not in finished:
                check_processes(step.command, step.cluster.processes, gpus=step.cluster.gpus_per_node > 0)
                _check_inputs(chain, step)
        except UserError as error:
            raise UserError(f"{chain.file}: steps.{step.name}: {error}") from error
    executors = {step.cluster.executor for step in chain.steps if step.name not in finished}
    if "slurm" in executors and len(executors) > 1:
        raise UserError(
            f"{chain.file}: some steps run on SLURM and some on this machine ({', '.join(sorted(executors))}); give "
            "all of them cluster files of one kind"
        )


def _check_outputs(chain: Chain) -> None:
    writers: dict[Path, str] = {}
    for step in chain.steps:
        for place in {step.command.output.resolve(), step.command.run.resolve()}:
            if place in writers:
                raise UserError(
                    f"{chain.file}: steps '{writers[place]}' and '{step.name}' both write '{step.command.output}'; "
                    "give one of them another out"
                )
            writers[place] = step.name


def _check_inputs(chain: Chain, step: Step) -> None:
    """Everything that a step reads is there, or is written by a step that it waits for."""
    before = chain.before(step.name)
    for key, path in step.command.inputs:
        writers = [
            other.name for other in chain.steps if other is not step and _reads(step.command, path, other.command)
        ]
        for name in writers:
            if name not in before:
                raise UserError(f"{key}: '{path}' is written by step '{name}'; add '{name}' to its 'after'")
        if not writers and not path.expanduser().exists():
            raise UserError(f"{key}: '{path}' does not exist, and no step writes it; correct the path")


def _reads(command: CommandLine, path: Path, other: CommandLine) -> bool:
    """Whether a path that a command reads is something that another one writes."""
    place, output = path.expanduser().resolve(), other.output.resolve()
    if place == output or output in place.parents:
        return True
    # A report reads all runs below the folders that it names.
    return command.name == "report" and place in output.parents and other.output == other.run


def _check_config(command: CommandLine) -> None:
    """A run that was begun with another config is refused here, not by a job in some hours."""
    config = command.config
    if command.name not in _HARMLESS or config.overwrite or not (command.run / "config.yaml").is_file():
        return
    harmless = importlib.import_module(f".{_HARMLESS[command.name]}", __package__).HARMLESS
    ignored = ("out", "overwrite", *harmless)
    if command.name == "multitask":
        ignored += ("seed", "seeds") if config.seeds is not None else ()
        # The run records the options of the model that it adds to.
        ignored += ("model",) if config.model.base is not None else ()
    kept = run_values(config) if isinstance(config, PretrainConfig) else to_dict(config)
    changed = differences(read_run_config(command.run), kept, ignore=ignored)
    if changed:
        raise UserError(
            f"'{command.run}' holds a run with another config ({'; '.join(changed[:3])}); name another out, or "
            "overwrite=true to start afresh"
        )
