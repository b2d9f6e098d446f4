"""Protocols of evaluations: which of their values decide a number, and in which of them runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from polyscene.runtime.config import flatten
from polyscene.runtime.results import Evaluation

# What a protocol says about the subject, the machine or the drawing of pictures, not about the measurement.
_IGNORED = {
    "weights", "out", "overwrite", "baseline", "arch", "device", "workers", "cache", "batch_size", "compare",
    "picture_rows", "pictures", "colours", "alpha", "rows",
    "model_kind", "model_metadata", "resources", "seeds", "single",
}  # fmt: skip
# Differences that are told but do not forbid a comparison.
_MINOR = {"seed", "precision"}
_TRAINING = "config"
"""Where a protocol says how the model was trained before it was measured: a difference of that kind, too."""
_SUBJECTS = {"weights", "random", "compare"}


def decisive(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The values of a protocol that decide its numbers: flattened, without subject and machine; of paths, that one is
    given."""
    return {key: "(a path)" if path else text for key, text, path in _values(protocol) if not _is_minor(key)}


def incidental(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Values that differ harmlessly but are worth a word: seed, precision, training, and where the data lay."""
    return {key: text for key, text, path in _values(protocol) if path or _is_minor(key)}


def differing_keys(protocols: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """(key, its value in each protocol) for every key that is not the same in all."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    rows = [(key, [protocol.get(key, "(absent)") for protocol in protocols]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def arch_of(evaluation: Evaluation) -> str:
    """The backbone's architecture, where the protocol tells; else empty."""
    arch = evaluation.protocol.get("arch")
    return arch if isinstance(arch, str) else ""


def protocol_name(evaluation: Evaluation) -> str:
    """Such as ``kmeans``; empty for a command with one protocol only."""
    name = evaluation.protocol.get("protocol", "")
    return name if isinstance(name, str) else ""


def _is_minor(key: str) -> bool:
    return key.rpartition(".")[2] in _MINOR or key.startswith(f"{_TRAINING}.")


def _is_path(value: Any) -> bool:
    """Whether a text looks like the place of a file, and not like a sentence with a stroke in it."""
    if not isinstance(value, str):
        return False
    return value.startswith(("/", "./", "../", "~/")) or (("/" in value or "\\" in value) and " " not in value)


def _values(protocol: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(key, value, whether it is a path) of everything that is not ignored."""
    found = []
    for key, value in flatten(protocol):
        parts = key.split(".")
        ignored = parts[0] in _IGNORED or (parts[0] == _TRAINING and parts[-1] in _IGNORED)
        if ignored or _SUBJECTS & set(parts):
            continue
        path = any(map(_is_path, value if isinstance(value, list) else [value]))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        found.append((key, text, path))
    return found


def is_sound(evaluation: Evaluation) -> bool:
    """Whether the parts of a results.json that the page takes apart have the shape that `write_results` gives them."""
    texts = [evaluation.command, evaluation.title, evaluation.subject]
    texts += [text for metric in evaluation.metrics for text in (metric.key, metric.label, metric.unit)]
    texts += [text for row in evaluation.published for text in (row.name, row.source)]
    texts += [text for picture in evaluation.pictures for text in (picture.file, picture.caption)]
    tables = [evaluation.values, evaluation.chance, evaluation.deviation, *(row.values for row in evaluation.published)]
    nested = [evaluation.baseline, *_items(evaluation.per_class)]
    tables += [table for tables_of_one in nested for table in _items(tables_of_one)]
    return (
        isinstance(evaluation.protocol, Mapping)
        and isinstance(evaluation.per_class, Mapping)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(entry, Mapping) for entry in nested)
        and all(isinstance(table, Mapping) and all(map(_is_number, table.values())) for table in tables)
    )


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _is_number(value: Any) -> bool:
    """A finite number, or None for one that is absent."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value is None or number
