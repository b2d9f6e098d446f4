"""SIGUSR2, SIGTERM and Ctrl-C mean: finish this step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))


class StopRequest:
    """Remembers that a signal asked the run to stop; a second Ctrl-C interrupts at once.

    Use as a context manager around the training loop; poll :attr:`signal` once a step. The handlers that were
    installed before are put back at the end. One request may enclose another, as a job does a training loop: a signal
    that came before the loop began is then known in the loop, and one that came in the loop is known after it.

    Attributes:
        signal: the first signal that came, or None.
        polled: whether a request within this one is active, that is, whether somebody looks at it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.polled = False
        self._enclosing: StopRequest | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        if isinstance(owner, StopRequest):
            self._enclosing = owner
            owner.polled = True
            self.signal = self.signal or owner.signal
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._enclosing is not None:
            self._enclosing.signal = self._enclosing.signal or self.signal
            self._enclosing.polled = False
            self._enclosing = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        # A first SIGUSR2 means "go on later"; the SIGTERM of the time limit that may follow does not change that.
        if self.signal is None or number == signal.SIGINT:
            self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """The shell's code for "ended by this signal" (130 for Ctrl-C, 143 for SIGTERM)."""
        return 128 + int(self.signal) if self.signal else 0
