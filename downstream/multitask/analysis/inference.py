"""What inference with a network costs on a machine: time and memory. Only shapes matter, values are random."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from polyscene.runtime.errors import UserError

from ..models.base import DenseModel
from ..models.families import Options, make_empty_model

WARM_UP = 2
"""Passes before the first timed one: kernels are chosen and memory is mapped in them."""

CUDA_MEMORY = "most memory that PyTorch's CUDA allocator had handed out during a pass"
CPU_MEMORY = "weights, and what one pass adds to the resident memory of a process of its own (VmHWM)"


@dataclass(frozen=True)
class Network:
    """What decides the shapes of a model; can be sent to another process.

    Attributes:
        options: what kind of model.
        arch: timm name of the backbone.
        channels: task -> channels of its output.
        auxiliary: task that only a front end predicts -> channels.
        image_level: those of the tasks that have one output an image.
    """

    options: Options
    arch: str
    channels: Mapping[str, int]
    auxiliary: Mapping[str, int] = field(default_factory=dict)
    image_level: tuple[str, ...] = ()

    def build(self) -> DenseModel:
        """The model with random values, on the CPU, in evaluation mode.

        Raises:
            UserError: what the model's library refuses.
        """
        return make_empty_model(
            self.options, self.arch, self.channels, auxiliary=self.auxiliary, image_level=self.image_level
        )


@dataclass(frozen=True)
class Setting:
    """How inference is run.

    Attributes:
        size: (height, width) of the images, pixels.
        batch: images at once.
        precision: ``fp32`` or ``bf16`` (autocast).
        device: ``cpu`` or ``cuda``, perhaps with a number.
    """

    size: tuple[int, int]
    batch: int = 1
    precision: str = "fp32"
    device: str = "cpu"

    def images(self) -> Tensor:
        """(batch, 3, H, W) random images as networks see them."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, *self.size, generator=generator)
        return images.to(self.device).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class PeakMemory:
    """Memory of inference.

    Attributes:
        weights: bytes of parameters and buffers.
        peak: bytes of these and of all that is alive beside them at once; None where it cannot be measured.
    """

    weights: int
    peak: int | None


@torch.no_grad()
def run(model: DenseModel, images: Tensor, precision: str) -> None:
    """One pass of all tasks; returns when it is finished."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        model(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def latencies(
    models: Mapping[str, DenseModel],
    setting: Setting,
    repeats: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of single passes of several models that take turns, so that a change of the machine hits all of them.

    Args:
        models: name -> model, on ``setting.device``.
        setting: how they are run.
        repeats: rounds; each times every model once, and begins with another one.
        progress: called with the number of passes timed.

    Returns:
        Name -> ``repeats`` times, in the order of the rounds.
    """
    images = setting.images()
    for model in models.values():
        for _ in range(WARM_UP):
            run(model, images, setting.precision)
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            start = time.perf_counter()
            run(models[name], images, setting.precision)
            times[name].append(time.perf_counter() - start)
            if progress is not None:
                progress(sum(map(len, times.values())))
    return times


def paired_ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Time of a model by that of another one in the same round."""
    return [own / other for own, other in zip(times, reference, strict=True)]


def peak_memory(network: Network, setting: Setting) -> PeakMemory:
    """Memory of one pass: of the CUDA allocator (`CUDA_MEMORY`), or of a process (`CPU_MEMORY`).

    Args:
        network: built anew for it.
        setting: how it is run; on a GPU nothing else of this process may run on it.

    Raises:
        UserError: memory does not suffice.
    """
    if torch.device(setting.device).type == "cuda":
        return _cuda_peak(network, setting)
    # Fresh, because memory that a process has freed before is used again without a trace.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(_cpu_peak, network, setting, torch.get_num_threads()).result()
        except (BrokenProcessPool, RuntimeError) as error:
            # A process that the system killed, or an allocation that it refused.
            if isinstance(error, BrokenProcessPool) or "allocate" in str(error):
                raise _no_room(setting, "this machine") from error
            raise


def resident_peak(function: Callable[[], object]) -> int | None:
    """Bytes by which this process' resident memory grows at most while a function runs.

    None where the system does not tell (needs Linux with a writable ``/proc/self/clear_refs``).
    """
    try:
        _return_free_memory()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
        function()
        return max(0, _resident("VmHWM") - before)
    except (OSError, ValueError, StopIteration):
        return None


def _cuda_peak(network: Network, setting: Setting) -> PeakMemory:
    device = torch.device(setting.device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    try:
        model = prepared(network.build(), setting.device)
        images = setting.images()
        run(model, images, setting.precision)
        torch.cuda.reset_peak_memory_stats(device)
        run(model, images, setting.precision)
    except torch.cuda.OutOfMemoryError as error:
        raise _no_room(setting, torch.cuda.get_device_name(device)) from error
    return PeakMemory(_bytes(model), torch.cuda.max_memory_allocated(device) - before)


def _cpu_peak(network: Network, setting: Setting, threads: int) -> PeakMemory:
    torch.set_num_threads(threads)
    model = prepared(network.build(), setting.device)
    images = setting.images()
    run(model, images, setting.precision)  # compiled kernels and threads stay; they are not the network's
    added = resident_peak(lambda: run(model, images, setting.precision))
    weights = _bytes(model)
    return PeakMemory(weights, None if added is None else weights + added)


def prepared(model: DenseModel, device: str) -> DenseModel:
    """The model as it is run: on the device, channels last, without gradients."""
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def _no_room(setting: Setting, where: str) -> UserError:
    height, width = setting.size
    return UserError(
        f"a pass at {height}x{width} with batch={setting.batch} needs more memory than {where} has; use a smaller size "
        "or batch"
    )


def _bytes(model: DenseModel) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _resident(key: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (most) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def _return_free_memory() -> None:
    """Give freed memory back to the system, so that using it again shows."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # another C library than glibc
