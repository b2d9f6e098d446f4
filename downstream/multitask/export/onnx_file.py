"""A folded network as an ONNX file, for programs without PyTorch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from polyscene.runtime.errors import UserError
from polyscene.runtime.files import atomic_writer

OPSET = 18
INPUT, OUTPUT = "images", "output"


def require_onnx() -> None:
    """Refuse to go on without the packages that torch needs to write ONNX.

    Raises:
        UserError: one of them is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"writing ONNX needs {' and '.join(missing)}; run: pip install 'polyscene[onnx]'")


def save_onnx(path: Path, network: nn.Module, header: Mapping[str, str]) -> None:
    """Write a network of one input and one output, with free batch size, height and width.

    Args:
        path: the file; its folder must exist; replaced in one step.
        network: ``images (N, 3, H, W) float32 -> output (N, channels, H, W)``, on the CPU, in evaluation mode.
        header: facts about it, written into the file's metadata.

    Raises:
        UserError: packages are missing, torch cannot express the network in ONNX, or the file cannot be written.
    """
    require_onnx()
    import onnx

    # Sizes that no layer of the network has, so that none of them is taken for a constant.
    example = torch.zeros(2, 3, 75, 101)
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(free,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: torch {torch.__version__} cannot write this network as ONNX: {reason}") from error
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(sorted(header.items())))
    onnx.checker.check_model(model)
    with atomic_writer(path) as file:
        file.write(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about itself from the user; failures are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
