"""Moving what the host planned to the device without making either wait for the other."""

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: every type may begin there


def to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copy many small CPU tensors to a device with one asynchronous copy.

    They travel in one pinned buffer: a copy from ordinary memory would wait for the device, and one copy per tensor
    would cost more than the data.

    Args:
        tensors: CPU tensors of any types.
        device: where to; for the CPU the tensors are returned as they are.

    Returns:
        The tensors, on the device, in order.
    """
    if device.type == "cpu" or not tensors:
        return tensors
    buffer = pack(tensors, pin_memory=device.type == "cuda")
    return unpack(buffer.to(device, non_blocking=True), tensors)


def pack(tensors: list[Tensor], pin_memory: bool) -> Tensor:
    """The bytes of CPU tensors one after the other, each at an aligned place, as one uint8 tensor."""
    buffer = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pin_memory)
    for place, tensor in zip(unpack(buffer, tensors), tensors, strict=True):
        place.copy_(tensor)
    return buffer


def unpack(buffer: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views into a packed buffer, of the types and shapes of `like`."""
    views, start = [], 0
    for tensor in like:
        views.append(buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return views


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
