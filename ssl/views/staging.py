"""Moving what the host planned to the device without making either wait for the other."""

import torch
from torch import Tensor


def to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copy many small CPU tensors to a device with one asynchronous copy.

    They are packed into one pinned buffer: a copy from ordinary memory would wait for the device, and one copy per
    tensor would cost more than the data.

    Args:
        tensors: CPU tensors of any types.
        device: where to; for the CPU the tensors are returned as they are.

    Returns:
        The tensors, on the device, in order.
    """
    if device.type == "cpu" or not tensors:
        return tensors
    padded_sizes = [-(-tensor.nbytes // 16) * 16 for tensor in tensors]
    buffer = torch.empty(sum(padded_sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    start, places = 0, []
    for tensor, padded_size in zip(tensors, padded_sizes, strict=True):
        places.append(slice(start, start + tensor.nbytes))
        buffer[places[-1]].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        start += padded_size
    moved = buffer.to(device, non_blocking=True)
    return [moved[place].view(tensor.dtype).view(tensor.shape) for place, tensor in zip(places, tensors, strict=True)]
