"""A module whose gradients are averaged over the processes of a run."""

from __future__ import annotations

import warnings

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import World


def data_parallel(module: nn.Module, world: World) -> nn.Module:
    """Wrap a module on this process's device; the module itself if the process is alone.

    Buffers are never sent around: queues and BatchNorm statistics are every process's own business.
    """
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions of torch recommend an option that older ones do not have.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
