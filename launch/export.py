"""``polyscene export``: one backbone, written for another program."""

from __future__ import annotations

from pathlib import Path

from polyscene.runtime.errors import UserError
from polyscene.runtime.weights import WRITABLE_FORMATS, read_weights, write_weights

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
