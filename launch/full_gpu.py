"""A GPU without room for the run, told in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from polyscene.runtime.errors import RunFailed


@contextmanager
def full_gpu_in_one_line() -> Iterator[None]:
    """Around a command.

    Raises:
        RunFailed: the GPU's memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        # A command that does not need torch does not import it for this.
        if "torch" not in sys.modules or not isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise
        reason = str(error).split(". GPU ")[0]  # the rest is advice on torch's allocator
        raise RunFailed(f"{reason}; lower batch_size, or use more GPUs, which share the batch") from error
