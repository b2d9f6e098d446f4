"""Means of numbers between two lines of a log."""

from __future__ import annotations

from torch import Tensor


class WindowMean:
    """Means of scalar tensors since the last reading, kept on their device: adding never waits for it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Add a vector of scalars (n,)."""
        detached = values.detach()
        self._sum = detached.clone() if self._sum is None else self._sum + detached
        self._count += 1

    def take(self) -> Tensor:
        """The mean vector (n,) since the last call; starts a new window.

        Raises:
            ValueError: nothing was added.
        """
        if self._sum is None:
            raise ValueError("no values in this window")
        mean = self._sum / self._count
        self._sum, self._count = None, 0
        return mean
