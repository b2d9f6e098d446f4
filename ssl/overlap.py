"""Work on a GPU beside the step that it is busy with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SideStream:
    """Prepares the next step's tensors while the device still runs the current step.

    The host launches a step and goes on to the next batch long before the device is done. What it launches there
    through :meth:`run` has a stream of its own and need not wait for the step; only what is launched afterwards waits
    for it. So no batch is fetched ahead of its step, and a run that is stopped has nothing to give back. On a CPU
    everything happens at once, in the order of the calls.

    Args:
        device: of the steps.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            # The work may read what was made before the first step.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, work: Callable[[], Sequence[Tensor]], reads: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        """The tensors that ``work`` makes, for use on the current stream.

        Args:
            work: launches it all, and does not wait for what was launched elsewhere.
            reads: what it reads of the device's memory that was written, finished, by another stream. The memory stays
                theirs until the work is done, even if the host forgets them before.
        """
        if self._stream is None:
            return work()
        for tensor in reads:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            made = work()
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)  # or the side stream would write into it as soon as the host forgets it
        return made
