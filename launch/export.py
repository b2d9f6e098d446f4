"""``polyscene export``: one backbone, or the folded tasks of a multi-task model, written for another program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import make_folder
from polyscene.runtime.weights import WRITABLE_FORMATS, read_weights, write_weights

FOLDED_FORMATS = ("safetensors", "onnx")

_HINTS = {
    "detectron2": "; there set STRIDE_IN_1X1 False, INPUT.FORMAT RGB, PIXEL_MEAN and PIXEL_STD to ImageNet's times 255",
    "torchvision": "; load with strict=False: only fc.weight and fc.bias are missing",
    "timm": "; load into timm.create_model({arch!r}, num_classes=0)",
}


def export(source: Path, out: Path, format: str, arch: str | None = None) -> str:
    """Convert a run or weight file to `format` and write it to `out` (replaced in one step if it exists).

    Args:
        source: run directory or any file that `read_weights` knows.
        out: the file to write.
        format: one of ``safetensors``, ``torchvision``, ``timm``, ``moco``, ``detectron2``.
        arch: timm name, for the rare file whose architecture its shapes do not tell.

    Returns:
        One line that says what was read, what was written and how to load it.

    Raises:
        UserError: see `read_weights` and `write_weights`; or `out` is `source` itself.
    """
    source, out = Path(source), Path(out)
    if format not in WRITABLE_FORMATS:
        raise UserError(f"--format {format}: not known; choose one of {', '.join(WRITABLE_FORMATS)}")
    if source.is_dir() and (source / "model.safetensors").is_file():
        raise UserError(f"'{source}' is a multi-task run; write its tasks as plain networks with --fold")
    weights = read_weights(source, arch, with_training=format == "moco")
    if weights.path is not None and out.resolve() == weights.path.resolve():
        raise UserError(f"{out}: is the source itself; name another file to write")
    write_weights(weights, out, format)
    counters = f", {weights.counters_set} counters set to 0" if weights.counters_set else ""
    aside = ", ".join(f"{name} ({number})" for name, number in weights.left_aside.items())
    aside = f"; left aside: {aside}" if aside and format != "moco" else ""
    hint = _HINTS.get(format, "").format(arch=weights.arch)
    return (
        f"{out}: {weights.arch}, {len(weights.state)} tensors, {format} format, from {weights.path} "
        f"({weights.source_format}{counters}){aside}{hint}"
    )


def export_folded(source: Path, out: Path, format: str, tasks: Sequence[str] = ()) -> str:
    """Write every task of a multi-task model as a plain network: modulators, adapters and BatchNorms folded.

    Args:
        source: run directory of ``polyscene multitask``, or a model file.
        out: folder; gets ``TASK.safetensors`` or ``TASK.onnx``.
        format: ``safetensors`` or ``onnx``.
        tasks: those to write; none: all.

    Returns:
        One line that says what was written.

    Raises:
        UserError: another format, no multi-task model, one on four scales, a task that it lacks, or packages that ONNX
            needs are missing.
    """
    from polyscene.downstream.multitask.export.fold import fold_model
    from polyscene.downstream.multitask.export.onnx_file import require_onnx, save_onnx
    from polyscene.downstream.multitask.export.plain_file import plain_header, save_plain
    from polyscene.downstream.multitask.models.build import ModelOptions
    from polyscene.downstream.multitask.models.model_file import load_model

    source, out = Path(source), Path(out)
    if format not in FOLDED_FORMATS:
        raise UserError(f"--format {format}: not for folded networks; choose one of {', '.join(FOLDED_FORMATS)}")
    if format == "onnx":
        require_onnx()
    if source.is_dir() and not (source / "model.safetensors").is_file():
        if any((source / name).exists() for name in ("backbone.safetensors", "image_index.npz")):
            raise UserError(f"'{source}' is a pretraining run, which has no tasks to fold; leave --fold out")
        if (source / "checkpoints").is_dir():
            raise UserError(f"'{source}' has no model.safetensors yet; finish its training first")
    saved = load_model(source)
    for task in tasks:
        saved.model.check_present(task)
    if not isinstance(saved.options, ModelOptions):
        raise UserError(
            f"'{source}' is a {saved.options.kind} model on four scales, whose tasks are no plain networks to fold; "
            "use polyscene predict"
        )
    make_folder(out)
    written = []
    for task in tasks or saved.tasks:
        path = out / f"{task}.{format}"
        if format == "onnx":
            save_onnx(path, fold_model(saved.model, task), plain_header(saved, task))
        else:
            save_plain(path, saved, task)
        written.append(path.name)
    return (
        f"{out}: {', '.join(written)}, plain {saved.arch} + {saved.options.head} networks; input: RGB / 255, minus "
        "ImageNet's mean, divided by its standard deviation; any height and width"
    )
