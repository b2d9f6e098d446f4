"""SIGUSR2, SIGTERM and Ctrl-C mean: finish this step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))


class StopRequest:
    """Remembers that a signal asked the run to stop; a second Ctrl-C interrupts at once.

    Use as a context manager around the training loop; poll :attr:`signal` once a step. The handlers that were
    installed before are put back at the end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """The shell's code for "ended by this signal" (130 for Ctrl-C, 143 for SIGTERM)."""
        return 128 + int(self.signal) if self.signal else 0
