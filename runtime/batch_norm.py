"""BatchNorm in several processes: statistics over all of them, or running statistics that are averaged at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import World


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace BatchNorm by BatchNorm over the batches of all processes; parameters and state-dict keys stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = HostSyncBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            # The same parameter and buffer objects: an optimiser may hold them already.
            replacement._parameters, replacement._buffers = child._parameters, child._buffers
            replacement.train(child.training)
            setattr(module, name, replacement)
        else:
            synchronise(child, device)
    return module


class HostSyncBatchNorm2d(nn.BatchNorm2d):
    """Synchronised BatchNorm for processes on CPUs, where torch's own refuses to work; equal batches per process."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, normalised by the statistics of all processes' inputs."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        wide = x.float()
        moments = torch.cat([wide.sum(dim=(0, 2, 3)), (wide * wide).sum(dim=(0, 2, 3))])
        mean, square = (_AllReduceSum.apply(moments) / count).chunk(2)
        variance = square - mean * mean
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (wide * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)).to(x.dtype)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def running_statistics(module: nn.Module) -> Tensor:
    """All BatchNorm running means and variances of a module, as one flat float32 vector."""
    flat = [buffer.detach().flatten().float() for buffer in _statistics(module)]
    return torch.cat(flat) if flat else torch.zeros(0)


@torch.no_grad()
def load_running_statistics(module: nn.Module, flat: Tensor) -> None:
    """Write a vector made by :func:`running_statistics` back."""
    buffers = _statistics(module)
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(values.view_as(buffer))


@contextmanager
def averaged_statistics(module: nn.Module, world: World) -> Iterator[None]:
    """Give a module the running statistics averaged over the processes, and its own ones back at the end.

    For evaluating and exporting: every process then has the same network. Entering is a collective call.
    """
    own = running_statistics(module)
    # In float64 the mean of equal numbers is that number: statistics that nobody changed keep their bits.
    load_running_statistics(module, world.mean(own.double()))
    try:
        yield
    finally:
        load_running_statistics(module, own)


def _statistics(module: nn.Module) -> list[Tensor]:
    return [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
