"""A chain file: its keys, its variables, and its steps in the order in which they can run."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyscene.runtime.config import build, config_values, flatten, option, parse_words, raw_values
from polyscene.runtime.errors import UserError

from .cluster.cluster_config import ClusterConfig, load_cluster
from .cluster.command_line import CommandLine, parse_command
from .limits import check_at_least

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NEEDED = "???"


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One step of a chain: a command line of polyscene."""

    command: str | tuple[str, ...] = option(help="command line without 'polyscene', as text or as a list of words")
    after: str | tuple[str, ...] = option((), help="steps that must be completed before")
    cluster: str | None = option(None, help="cluster file of this step; null: the chain's")


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Commands that build on each other: ``polyscene chain CHAIN.yaml``."""

    out: str = option(help="folder for chain.json, the record of what was started and how it ended")
    cluster: str = option("cluster/local", help="cluster file of the steps that name none")
    parallel: int = option(1, help="steps that run at the same time on this machine (executor local)")
    vars: dict | None = option(None, help="values that the steps use as ${vars.NAME}; ??? must be given")
    steps: dict = option(help="NAME: {command: ..., after: [NAME, ...], cluster: FILE}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was understood.

    Attributes:
        name: unique in the chain.
        command: what it does.
        cluster: where.
        after: names of the steps that must be completed before.
    """

    name: str
    command: CommandLine
    cluster: ClusterConfig
    after: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain that was understood.

    Attributes:
        file: as the user named it.
        words: ``key=value`` words that changed it.
        out: folder of its record.
        parallel: steps at the same time, where this machine runs them.
        steps: in an order in which they can run.
    """

    file: str
    words: tuple[str, ...]
    out: Path
    parallel: int
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Of the file."""
        return Path(self.file).stem

    def before(self, name: str) -> set[str]:
        """All steps that are completed before a step starts, whether it names them or those do."""
        after = {step.name: step.after for step in self.steps}
        found: set[str] = set()
        waiting = list(after[name])
        while waiting:
            other = waiting.pop()
            if other not in found:
                found.add(other)
                waiting += after[other]
        return found


def load_chain(path: str, words: Sequence[str] = ()) -> Chain:
    """Read a chain file, set its variables and parse every command.

    Args:
        path: YAML file, or a shipped one such as ``chains/demo``.
        words: such as ``vars.root=runs/a``, ``cluster=cluster/slurm_1gpu`` or ``steps.pretrain.cluster=FILE``.

    Raises:
        UserError: anything wrong with the file, a variable that is needed, a command that would be refused, an
            unknown step, or steps that wait for each other.
    """
    _check_words(raw_values(path), words)
    _check_variables(path, raw_values(path, words))
    config = build(ChainConfig, config_values(path, words), source=path)
    check_at_least([("parallel", config.parallel, 1)])
    if not config.steps:
        raise UserError(f"{path}: steps is empty; name at least one step with its command")
    settings = {str(name): _step_config(path, str(name), values) for name, values in config.steps.items()}
    order = sort_steps({name: _names(step.after) for name, step in settings.items()}, path)
    steps = tuple(_step(path, name, settings[name], config.cluster) for name in order)
    return Chain(file=path, words=tuple(words), out=Path(config.out), parallel=config.parallel, steps=steps)


def sort_steps(after: Mapping[str, Sequence[str]], path: str) -> list[str]:
    """The steps so that each comes after those it names; otherwise in the order of the file.

    Raises:
        UserError: an unknown name, or a circle, naming the steps of it.
    """
    for name, others in after.items():
        for other in others:
            if other not in after:
                close = difflib.get_close_matches(other, after, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"steps: {', '.join(after)}"
                raise UserError(f"{path}: steps.{name}.after names '{other}', which is no step; {hint}")
    order: list[str] = []
    while len(order) < len(after):
        ready = next((n for n in after if n not in order and all(o in order for o in after[n])), None)
        if ready is None:
            circle = _circle({n: others for n, others in after.items() if n not in order})
            raise UserError(f"{path}: steps wait for each other: {' after '.join(circle)}; remove one of these 'after'")
        order.append(ready)
    return order


def _circle(after: Mapping[str, Sequence[str]]) -> list[str]:
    """One circle among steps none of which can start, its first step again at the end."""
    walked = [next(iter(after))]
    while True:
        following = next(other for other in after[walked[-1]] if other in after)
        if following in walked:
            return [*walked[walked.index(following) :], following]
        walked.append(following)


def _check_words(raw: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse words for variables and steps that the file does not have."""
    given = parse_words(words)
    for section in ("vars", "steps"):
        known, named = raw.get(section) or {}, given.get(section)
        if not isinstance(known, Mapping) or not isinstance(named, Mapping):
            continue
        for name in named:
            if name not in known:
                close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
                hint = f"did you mean '{section}.{close[0]}'?" if close else f"it has: {', '.join(map(str, known))}"
                raise UserError(f"{section}.{name} is not in the chain; {hint}")


def _check_variables(path: str, raw: Mapping[str, Any]) -> None:
    values = raw.get("vars")
    needed = [key for key, value in flatten(values if isinstance(values, Mapping) else {}) if value == _NEEDED]
    if needed:
        words = " ".join(f"vars.{key}=VALUE" for key in needed)
        raise UserError(f"{path}: {', '.join(f'vars.{key}' for key in needed)} must be given; add {words}")


def _step_config(path: str, name: str, values: Any) -> StepConfig:
    if not _NAME.fullmatch(name):
        raise UserError(f"{path}: step '{name}': a name is made of letters, digits, '_', '-' and '.'")
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: steps.{name} is a section with the key command, not the value {values!r}")
    return build(StepConfig, values, source=f"{path}: steps.{name}")


def _step(path: str, name: str, settings: StepConfig, cluster: str) -> Step:
    try:
        return Step(
            name=name,
            command=parse_command(_words(settings.command)),
            cluster=load_cluster(settings.cluster or cluster),
            after=_names(settings.after),
        )
    except UserError as error:
        raise UserError(f"{path}: steps.{name}: {error}") from error


def _words(command: str | Sequence[str]) -> list[str]:
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise UserError(f"command: {str(error).lower()}; check its quotes") from error
    return words[1:] if words[:1] == ["polyscene"] else words


def _names(after: str | Sequence[str]) -> tuple[str, ...]:
    return (after,) if isinstance(after, str) else tuple(dict.fromkeys(after))
