"""A model in one safetensors file, whose header says how to build it and what its tasks are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer

from ..data.opening import TaskRecord, image_level_tasks
from ..rcm.state import state_difference
from .base import DenseModel
from .families import Options, make_empty_model, options_from_json, options_to_json

CONTENT = "polyscene multi-task model"
VERSION = "1"
_WHERE = "give a finished run of polyscene multitask or its model.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """What a model file holds.

    Attributes:
        model: on the CPU, in evaluation mode.
        arch: timm name of the backbone.
        options: what kind of model.
        tasks: task -> what it is, without its data set; in the order of ``model.tasks``.
        metadata: facts about the training, as strings.
        auxiliary: task that only a front end predicts -> what it is.
    """

    model: DenseModel
    arch: str
    options: Options
    tasks: dict[str, TaskRecord]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    auxiliary: dict[str, TaskRecord] = dataclasses.field(default_factory=dict)


def save_model(path: Path, saved: SavedModel) -> None:
    """Write a model; an existing file is replaced in one step. Equal models give equal files.

    Args:
        path: the file; its folder must exist.
        saved: the model, on any device, and what it is.

    Raises:
        UserError: the file cannot be written.
        ValueError: the records are not those of the model's tasks.
    """
    model, tasks = saved.model, saved.tasks
    outputs = {task: head.prediction.out_channels for task, head in model.heads.tasks.items()}
    if outputs != {task: record.channels for task, record in tasks.items()}:
        raise ValueError(f"records of {list(tasks)} for a model with the tasks and channels {outputs}")
    if model.image_level != image_level_tasks({task: tasks[task] for task in model.tasks}):
        raise ValueError(f"records for other image-level tasks than the model's {model.image_level}")
    header = {
        "content": CONTENT,
        "version": VERSION,
        "arch": saved.arch,
        "options": json.dumps(options_to_json(saved.options)),
        "tasks": json.dumps([tasks[task].to_json() for task in model.tasks]),
        "auxiliary": json.dumps([record.to_json() for record in saved.auxiliary.values()]),
        "head_seed": str(model.head_seed),
        "metadata": json.dumps({key: str(value) for key, value in sorted(saved.metadata.items())}),
    }
    write_safetensors(path, model.state_dict(), header)


def load_model(path: Path | str) -> SavedModel:
    """Read what :func:`save_model` wrote, from the file or from the run directory that holds it.

    Raises:
        UserError: no such file; damaged, of another kind or from a newer version; tensors that do not fit what the
            header says, or are not finite.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    header, state = read_safetensors(path, CONTENT, _WHERE)
    if header.get("version") != VERSION:
        raise UserError(f"{path}: written by another version of polyscene ({header.get('version')}); use that one")
    try:
        options = options_from_json(json.loads(header["options"]))
        records, auxiliary = (_records(header[key]) for key in ("tasks", "auxiliary"))
        metadata = {str(key): str(value) for key, value in json.loads(header["metadata"]).items()}
        arch, seed = header["arch"], int(header["head_seed"])
        model = make_empty_model(
            options,
            arch,
            _channels(records),
            auxiliary=_channels(auxiliary),
            seed=seed,
            image_level=image_level_tasks({**records, **auxiliary}),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: its header is damaged ({_one_line(error)}); {_WHERE}") from error
    if different := state_difference(model.state_dict(), state):
        raise UserError(
            f"{path}: the tensors do not fit its header: {len(different)} missing, unexpected or of another shape, "
            f"first: {different[0]}; {_WHERE}"
        )
    infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        raise UserError(f"{path}: {len(infinite)} tensors hold NaN or infinity (first: {infinite[0]}); it had diverged")
    model.load_state_dict(state)
    return SavedModel(model, arch, options, records, metadata, auxiliary)


def write_safetensors(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and a header of strings, in one step and in a fixed order.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for key, value in state.items()
    }
    content = safetensors.torch.save(tensors, metadata=dict(header))
    # The library writes the header's entries in any order.
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(header.items()))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    with atomic_writer(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(content)[8 + length :])


def read_safetensors(path: Path, content: str, remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file whose header says that it holds ``content``.

    Raises:
        UserError: no such file, damaged, or it holds something else; ends with ``remedy``.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            if header.get("content") != content:
                raise UserError(f"{path}: is no {content}; {remedy}")
            # Copies: the file may be replaced while its tensors are in use.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: is damaged or no safetensors file ({_one_line(error)}); {remedy}") from error
    return header, state


def _records(text: str) -> dict[str, TaskRecord]:
    return {record.name: record for record in map(TaskRecord.from_json, json.loads(text))}


def _channels(records: Mapping[str, TaskRecord]) -> dict[str, int]:
    return {name: record.channels for name, record in records.items()}


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
