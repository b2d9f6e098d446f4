"""What a step would take if every operation ran at the measured rates of the machine.

An operation takes at least its arithmetic at the rate of a large matrix product, and at least the bytes it reads and
writes at the rate of a large copy. The sum over all operations of the larger of the two is the bound of this sequence
of operations; fusing operations lowers it, caches that keep what was just written let a step beat it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Rates:
    """What the machine does: arithmetic operations a second in a matrix product, bytes a second in a copy."""

    flops: float
    bytes: float


@dataclass
class Work(TorchDispatchMode):
    """Counts the operations that run within it, those of the backward pass too.

    Attributes:
        operations: arithmetic operations and bytes of each; arithmetic of products and convolutions alone.
    """

    operations: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        more = more or {}
        result = function(*arguments, **more)
        if not (_only_views(function) or "empty" in function.overloadpacket.__name__):
            self.operations.append(
                (_flops(function, arguments, more, result), _moved(function, arguments, more, result))
            )
        return result

    @property
    def flops(self) -> float:
        """Arithmetic operations."""
        return sum(flops for flops, _ in self.operations)

    @property
    def bytes(self) -> float:
        """Read and written by all operations."""
        return sum(size for _, size in self.operations)

    def seconds(self, rates: Rates) -> float:
        """The bound."""
        return sum(max(flops / rates.flops, size / rates.bytes) for flops, size in self.operations)


def measure_rates(device: torch.device, dtype: torch.dtype, repeats: int = 3) -> Rates:
    """The best of a few large products and copies.

    Args:
        device: to measure.
        dtype: of the products.
        repeats: products and copies of which the best counts.
    """
    side, length = (8192, 2**29) if device.type == "cuda" else (1024, 2**24)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source, target = (torch.zeros(length, device=device) for _ in range(2))
    a @ b
    product = min(_seconds(device, lambda: a @ b) for _ in range(repeats))
    copy = min(_seconds(device, lambda: target.copy_(source)) for _ in range(repeats))
    return Rates(2 * side**3 / product, 2 * source.nbytes / copy)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _flops(function: Any, arguments: Any, more: Any, result: Any) -> float:
    packet = function.overloadpacket
    if packet not in flop_registry:
        # In-place products, which the registry does not list, count like the others.
        packet = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
    if packet not in flop_registry:
        return 0.0
    return float(flop_registry[packet](*arguments, **more, out_val=result))


def _only_views(function: Any) -> bool:
    schema = function._schema
    aliases = [r.alias_info for r in schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _moved(function: Any, arguments: Any, more: Any, result: Any) -> int:
    """Bytes of all tensors that go in or come out, once each; twice where they are changed in place."""
    tensors = [x for x in tree_leaves((arguments, more, result)) if isinstance(x, Tensor)]
    sizes = {id(x): min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors}  # of expanded ones, what there is
    if function.overloadpacket.__name__.endswith("_"):
        first = tree_leaves(arguments[0])
        return sum(sizes.values()) + sum(sizes[id(x)] for x in first)
    return sum(sizes.values())
