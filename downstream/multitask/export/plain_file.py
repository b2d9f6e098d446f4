"""A folded network in a safetensors file that says what it takes and gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from polyscene.runtime.errors import UserError
from polyscene.runtime.features import IMAGENET_MEAN, IMAGENET_STD

from ..data.opening import TaskRecord, image_level_tasks
from ..models.build import ModelOptions, empty_model
from ..models.model_file import SavedModel, read_safetensors, write_safetensors
from ..rcm.state import state_difference
from .fold import PlainNetwork, fold_model

CONTENT = "polyscene folded network"
_REMEDY = "give a file written by polyscene export --fold"


@dataclass(frozen=True)
class SavedPlainNetwork:
    """What a file of a folded network holds.

    Attributes:
        network: on the CPU, in evaluation mode.
        record: what its task is.
        header: all that the file says, see :func:`plain_header`.
    """

    network: PlainNetwork
    record: TaskRecord
    header: dict[str, str]


def plain_header(saved: SavedModel, task: str) -> dict[str, str]:
    """Facts about the folded network of a task, as strings: its input, its output and where it is from.

    ``input``, ``mean``, ``std`` and ``colour`` say how to prepare images, ``output`` and ``classes`` what comes out;
    ``arch``, ``head``, ``head_width`` and ``output_stride`` how to build it, ``task`` its record as JSON, and
    ``metadata`` facts about the training as JSON.
    """
    record = saved.tasks[task]
    size = "1, 1" if record.image_level else "H, W"
    return {
        "content": CONTENT,
        "version": "1",
        "input": "images: (N, 3, H, W) float32, (RGB / 255 - mean) / std per channel, any H and W",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        "output": f"output: (N, {record.channels}, {size}) float32, raw output of task '{task}'",
        "classes": json.dumps(list(record.classes)),
        "arch": saved.arch,
        "head": saved.options.head,
        "head_width": str(saved.options.head_width),
        "output_stride": str(saved.options.output_stride),
        "task": json.dumps(record.to_json()),
        "metadata": json.dumps(dict(sorted(saved.metadata.items()))),
    }


def save_plain(path: Path, saved: SavedModel, task: str) -> PlainNetwork:
    """Fold a task of a model and write it; an existing file is replaced in one step.

    Returns:
        The folded network.

    Raises:
        UserError: no such task, or the file cannot be written.
    """
    network = fold_model(saved.model, task)
    write_safetensors(path, network.state_dict(), plain_header(saved, task))
    return network


def load_plain(path: Path | str) -> SavedPlainNetwork:
    """Read what :func:`save_plain` wrote.

    Raises:
        UserError: no such file, damaged, or of another kind.
    """
    path = Path(path)
    header, state = read_safetensors(path, CONTENT, _REMEDY)
    try:
        record = TaskRecord.from_json(json.loads(header["task"]))
        options = ModelOptions(
            kind="multi_task",  # the plain kind: whatever was folded looks the same
            head=header["head"],
            head_width=int(header["head_width"]),
            output_stride=int(header["output_stride"]),
        )
        whole = image_level_tasks({record.name: record})
        model = empty_model(options, header["arch"], {record.name: record.channels}, image_level=whole)
        network = fold_model(model, record.name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its header is damaged ({type(error).__name__}: {reason}); {_REMEDY}") from error
    if different := state_difference(network.state_dict(), state):
        raise UserError(f"{path}: {len(different)} tensors do not fit its header, first: {different[0]}; {_REMEDY}")
    network.load_state_dict(state)
    return SavedPlainNetwork(network, record, header)
