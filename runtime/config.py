"""YAML files and ``key=value`` words -> one validated, immutable dataclass; errors that name the key.

A schema is a frozen, keyword-only dataclass whose fields are made with :func:`option`. Fields without a default
must be given by the user. Nested dataclasses become nested YAML sections.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import UserError

Schema = TypeVar("Schema")
_REQUIRED = "???"  # OmegaConf's spelling of "the user must give this"


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """One key of a schema: its default (none: required) and the line that ``--help`` prints for it."""
    return dataclasses.field(default=default, metadata={"help": help})


def section(schema: type, *, help: str) -> Any:
    """A nested section of a schema, present by default with its own defaults."""
    return dataclasses.field(default_factory=schema, metadata={"help": help})


def load_config(schema: type[Schema], path: str | Path, overrides: Sequence[str] = ()) -> Schema:
    """Read a config file, follow its ``extends:``, apply ``key=value`` words and validate the result.

    Args:
        schema: the dataclass to build.
        path: a YAML file, or the name of a shipped one such as ``pretrain/quickstart``.
        overrides: words such as ``optim.lr=0.1``; values are YAML.

    Raises:
        UserError: unreadable file, malformed word, unknown key, wrong type, or a required key left out.
    """
    return build(schema, config_values(path, overrides), source=str(path))


def config_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The nested values of a config file with its ``extends:`` and ``key=value`` words, not yet validated.

    Raises:
        UserError: unreadable file or malformed word.
    """
    return _resolve(raw_values(path, overrides), find_config(path))


def raw_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What :func:`config_values` gives, but ``${...}`` and ``???`` stand as they are written.

    Raises:
        UserError: unreadable file or malformed word.
    """
    raw = _read_with_parents(find_config(path), ())
    _apply_words(raw, overrides)
    return raw


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Words such as ``optim.lr=0.1`` as nested values.

    Raises:
        UserError: a word is not of that form.
    """
    values: dict[str, Any] = {}
    _apply_words(values, words)
    return values


def find_config(path: str | Path) -> Path:
    """The config file that ``path`` names: a file, or one shipped with the package (with or without ``.yaml``)."""
    candidate = Path(path)
    if candidate.is_file():
        return candidate
    shipped = Path(str(resources.files("polyscene.configs")))
    # Without the .yaml, and with or without the folder's name: configs/pretrain/x.yaml, pretrain/x.yaml, pretrain/x.
    relative = Path(*candidate.parts[1:]) if candidate.parts[:1] == ("configs",) else candidate
    for name in (relative, relative.with_name(relative.name + ".yaml")):
        if not name.is_absolute() and (shipped / name).is_file():
            return shipped / name
    known = sorted(str(f.relative_to(shipped).with_suffix("")) for f in shipped.rglob("*.yaml"))
    close = difflib.get_close_matches(str(relative.with_suffix("")), known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"shipped configs: {', '.join(known)}"
    raise UserError(f"config file '{path}' does not exist; {hint}")


def build(schema: type[Schema], values: Mapping[str, Any], *, source: str) -> Schema:
    """Validate a nested mapping against a schema and return the immutable config.

    Raises:
        UserError: naming ``source`` and the full dotted key.
    """
    return _build(schema, values, prefix="", source=source, root=schema)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts and lists, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """The config as YAML text that :func:`load_config` reads back to an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def config_hash(values: Mapping[str, Any]) -> str:
    """A short, stable hash of nested config values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, value)`` of nested mappings; lists count as values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def relevant(values: Mapping[str, Any], ignore: Sequence[str]) -> dict[str, Any]:
    """The flattened values without the keys and sections that ``ignore`` names."""
    return {k: v for k, v in flatten(values) if not any(k == i or k.startswith(i + ".") for i in ignore)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """Lines ``key: old -> new`` for every differing key; ``ignore`` holds keys or section names that may differ."""
    before, after = relevant(old, ignore), relevant(new, ignore)
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]


def describe(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield ``(dotted key, type, default, help)`` of every key, for ``--help``."""
    for field, hint in _fields(schema):
        nested, optional = _nested(hint)
        if nested and not optional:
            yield from describe(nested, f"{prefix}{field.name}.")
            continue
        default = _default(field)
        if dataclasses.is_dataclass(default):
            yield f"{prefix}{field.name}", "section | null", "(below)", field.metadata["help"]
            yield from describe(nested, f"{prefix}{field.name}.")
            continue
        shown = "required" if default is dataclasses.MISSING else yaml_word(default)
        yield f"{prefix}{field.name}", type_name(hint), shown, field.metadata["help"]


def yaml_word(value: Any) -> str:
    """A value as one would type it after ``key=``."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml_word(v) for v in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_name(hint: Any) -> str:
    """A type hint in the words of a config file."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if a is type(None) else type_name(a) for a in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"[{type_name(arguments[0])}, ...]"
        return "[" + ", ".join(type_name(a) for a in arguments) + "]"
    return {str: "text", int: "integer", float: "number", bool: "true | false"}.get(
        hint, getattr(hint, "__name__", "?")
    )


# ---------------------------------------------------------------------------------------------- reading files


def _read_with_parents(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    file = file.resolve()
    if file in seen:
        raise UserError(f"{file}: 'extends' goes round in a circle ({' -> '.join(p.name for p in (*seen, file))})")
    values = _read_yaml(file)
    parents = values.pop("extends", None)
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents or []:
        beside = file.parent / parent
        named = beside if beside.is_file() else beside.with_name(beside.name + ".yaml")
        _merge(merged, _read_with_parents(named if named.is_file() else find_config(parent), (*seen, file)))
    _merge(merged, values)
    return merged


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config file '{file}': {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
    values = OmegaConf.to_container(loaded, resolve=False)
    if not isinstance(values, dict):
        raise UserError(f"{file}: a config file holds 'key: value' lines, this one holds a {type(values).__name__}")
    return values


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _parse_value(key: str, text: str) -> Any:
    try:
        # OmegaConf's loader reads 1e-4 as a number, where plain YAML 1.1 reads text.
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}: cannot read the value '{text}' as YAML") from error


def _apply_words(values: dict[str, Any], words: Sequence[str]) -> None:
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key.strip():
            raise UserError(f"'{word}' is not of the form key=value; write for example optim.lr=0.1")
        _set(values, key.strip(), _parse_value(key, text), word)


def _set(values: dict[str, Any], key: str, value: Any, word: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        child = values.setdefault(name, {})
        if child is None:
            child = values[name] = {}
        if not isinstance(child, dict):
            raise UserError(f"'{word}': '{name}' holds the value {child!r}, it is not a section")
        values = child
    if isinstance(value, dict) and isinstance(values.get(last), dict):
        _merge(values[last], value)
    else:
        values[last] = value


def _resolve(values: dict[str, Any], file: Path) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error


# ---------------------------------------------------------------------------------------------- validation


def _fields(schema: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield field, hints[field.name]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _nested(hint: Any) -> tuple[type | None, bool]:
    """The dataclass inside a hint, and whether ``null`` may stand in its place."""
    if dataclasses.is_dataclass(hint):
        return hint, False
    for argument in typing.get_args(hint):
        if dataclasses.is_dataclass(argument):
            return argument, True
    return None, False


def _build(schema: type, values: Mapping[str, Any], prefix: str, source: str, root: type) -> Any:
    known = {field.name: (field, hint) for field, hint in _fields(schema)}
    for key in values:
        if key not in known:
            # Inside a misspelt section the whole path tells more than its first word.
            inner = next((f".{name}" for name, _ in flatten(values[key])), "") if isinstance(values[key], dict) else ""
            raise UserError(f"{source}: unknown key '{prefix}{key}'; {_suggestion(f'{prefix}{key}{inner}', root)}")
    built = {}
    for name, (field, hint) in known.items():
        full = f"{prefix}{name}"
        given = name in values and values[name] != _REQUIRED
        nested, optional = _nested(hint)
        if nested and not (optional and given and values[name] is None):
            content = values[name] if given else {}
            if not given and optional and _default(field) is None:
                built[name] = None
                continue
            if not isinstance(content, Mapping):
                raise UserError(f"{source}: '{full}' is a section of keys, not the value {content!r}")
            built[name] = _build(nested, content, f"{full}.", source, root)
        elif given:
            built[name] = _convert(values[name], hint, full, source)
        else:
            default = _default(field)
            if default is dataclasses.MISSING:
                raise UserError(f"{source}: '{full}' is required ({field.metadata['help']}); add {full}=VALUE")
            built[name] = default
    return schema(**built)


def _suggestion(key: str, root: type) -> str:
    names = [name for name, *_ in describe(root)]
    last = [name.rsplit(".", 1)[-1] for name in names]
    close = [name for name, word in zip(names, last) if word == key]  # the right word without its section
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:  # nearly the right word in the wrong section
        best = difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
        close = [name for name, word in zip(names, last) if best and word == best[0]]
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "--help lists the valid keys"


def _convert(value: Any, hint: Any, key: str, source: str) -> Any:
    converted = _try_convert(value, hint)
    if converted is _NO_MATCH:
        raise UserError(f"{source}: '{key}' must be {type_name(hint)}, not {yaml_word(value)!r}")
    return converted


_NO_MATCH = object()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _try_convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        attempts = (_try_convert(value, a) for a in arguments)
        return next((a for a in attempts if a is not _NO_MATCH), _NO_MATCH)
    if origin is Literal:
        return value if value in arguments else _NO_MATCH
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return _NO_MATCH
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            return _NO_MATCH
        items = tuple(_try_convert(v, k) for v, k in zip(value, kinds))
        return _NO_MATCH if any(i is _NO_MATCH for i in items) else items
    if hint is float:
        return float(value) if _is_number(value) and math.isfinite(value) else _NO_MATCH
    if hint is int:
        return int(value) if _is_number(value) and float(value).is_integer() else _NO_MATCH
    if hint is str and _is_number(value):
        return str(value)  # a folder named 2017 is still text
    return value if isinstance(value, hint) else _NO_MATCH
