"""``--sweep``: one command line with lists of values -> one command line for every combination."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyscene.runtime.config import describe, parse_words, yaml_word
from polyscene.runtime.errors import UserError

from .command_line import parse_command, schema_of

_LONGEST = 180  # characters of a folder's name; file systems take 255 bytes


def expand_sweep(words: Sequence[str]) -> list[list[str]]:
    """Every combination of the values in lists, the last key running fastest.

    ``optim.lr=[0.1,0.3] seed=[0,1]`` makes four command lines, with ``out=OUT/optim.lr=0.1,seed=0`` and so on. A key
    whose own value is a list is swept by a list of lists.

    Args:
        words: a command with a CONFIG.

    Raises:
        UserError: no list; a command without a CONFIG; a list without values, or with the same twice.
    """
    schema = schema_of(words[0])
    if schema is None:
        raise UserError(f"--sweep needs a command with a CONFIG and key=value words, not {words[0]}")
    kinds = {key: kind for key, kind, *_ in describe(schema)}
    swept: dict[str, list[Any]] = {}
    fixed = []
    for word in words[1:]:
        key, separator, _ = word.partition("=")
        values = _values(word, kinds.get(key, "")) if separator else None
        if values is None:
            fixed.append(word)
        else:
            if key in ("out", "overwrite"):
                raise UserError(f"{key} cannot be swept; every combination gets a folder of its own within out")
            if key in swept:
                raise UserError(f"{key} is given twice; give it once")
            swept[key] = values
    if not swept:
        raise UserError("--sweep finds no list of values; write for example optim.lr=[0.1,0.3] seed=[0,1,2]")
    combinations = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    first = [f"{key}={_written(value)}" for key, value in combinations[0].items()]
    out = parse_command([words[0], *fixed, *first]).run
    fixed = [word for word in fixed if not word.startswith("out=")]
    return [
        [
            words[0],
            *fixed,
            *(f"{key}={_written(value)}" for key, value in chosen.items()),
            f"out={out / combination_name(chosen)}",
        ]
        for chosen in combinations
    ]


def combination_name(chosen: dict[str, Any]) -> str:
    """The folder of a combination: ``optim.lr=0.1,seed=0``; without characters that a path or a shell minds."""
    name = ",".join(f"{key}={_plain(value)}" for key, value in chosen.items())
    if len(name.encode()) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 60]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def common_folder(runs: Sequence[Path]) -> Path:
    """The nearest folder above all runs of an array; of a single run, itself."""
    if len(runs) == 1:
        return runs[0]
    parents = {run.absolute().parent for run in runs}
    first = min(parents, key=lambda p: len(p.parts))
    while not all(first == p or first in p.parents for p in parents):
        first = first.parent
    return first


def _values(word: str, kind: str) -> list[Any] | None:
    """The values to sweep over, or None for a word that is a plain setting."""
    key, _, text = word.partition("=")
    if not text.lstrip().startswith("["):
        return None
    values: Any = parse_words([f"value={text}"])["value"]
    if "[" in kind and not (values and all(isinstance(value, list) for value in values)):
        return None  # the key's own value
    if not values:
        raise UserError(f"{key}=[] holds no value to sweep over")
    names = [_plain(value) for value in values]
    if len(set(names)) < len(names):
        raise UserError(f"{key}={text} holds a value twice; give each once")
    return values


def _written(value: Any) -> str:
    """A value as a word of the command line that is read back as the same."""
    return f'"{value}"' if isinstance(value, str) and not re.fullmatch(r"[\w./+~-]+", value) else yaml_word(value)


def _plain(value: Any) -> str:
    text = "-".join(map(_plain, value)) if isinstance(value, (list, tuple)) else yaml_word(value)
    return re.sub(r"[^\w.+-]+", "_", text)
