"""Items made by worker processes, in order: torch's DataLoader with the corners that end long runs rounded off.

Worker processes leave signals to the main process; one that dies is one line for the user; none outlives the loader.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .errors import UserError
from .shared_blocks import SharedBlocks
from .transport import Parcel, worker_blocks

Item = TypeVar("Item")


class WorkerLoader(Generic[Item]):
    """Items ``make(start) .. make(end - 1)``, in this order; its length is their number.

    Workers live as long as the iteration. Each prepares whole items: up to ``workers * prefetch`` of them wait.

    Args:
        make: number of the item -> item; called in the workers, and picklable where processes are spawned. An item's
            ``pin_memory()``, if it has one, is called for ``pin_memory``.
        start: first item wanted.
        end: item after the last one.
        workers: processes; 0 makes the items in this process.
        pin_memory: copy items into page-locked memory; ignored without a GPU.
        prefetch: items prepared ahead by every worker.
        pack: send items as one block of memory each (`transport.Parcel`); for those that do not see to that themselves.
        what: what the workers do, for the message about one that died.

    Raises:
        UserError: numbers that make no sense. While iterating: ``make`` raised one, or a worker process died.
    """

    def __init__(
        self,
        make: Callable[[int], Item],
        *,
        start: int,
        end: int,
        workers: int,
        pin_memory: bool = False,
        prefetch: int = 2,
        pack: bool = False,
        what: str = "decodes images",
    ):
        for name, value, least in (("workers", workers, 0), ("prefetch", prefetch, 1), ("start", start, 0)):
            if value < least:
                raise UserError(f"{name}={value}: must be at least {least}")
        self._what = what
        self._loader = DataLoader(
            _Items(make, pack),
            batch_size=None,
            sampler=range(start, max(start, end)),
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory and torch.cuda.is_available(),
            prefetch_factor=prefetch if workers else None,
            worker_init_fn=start_worker if workers else None,
            # Without a generator of its own, every new loader would advance torch's global one.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Item]:
        iterator = self._start()
        try:
            for item in iterator:
                if isinstance(item, _Failure):
                    raise UserError(item.message)
                yield item
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"a process that {self._what} died ({first}); mostly memory ran out: lower data.workers or "
                "batch_size, or ask for more memory"
            ) from error
        finally:
            if hasattr(iterator, "_shutdown_workers"):  # now, not when the last traceback is forgotten
                iterator._shutdown_workers()

    def _start(self) -> Iterator[Item | _Failure]:
        # torch's handler of SIGCHLD raises the death of a worker in the middle of whatever the main process does just
        # then. The iterator also looks after its workers whenever it waits for a batch, where the error can be caught.
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if in_main_thread and hasattr(signal, "SIGCHLD") else None
        with _signals_held_back():
            iterator = iter(self._loader)
        if before is not None:
            # Another loader may have installed torch's handler earlier; it stays for good, so it is taken out here.
            torchs = getattr(before, "__module__", "") == "torch.utils.data._utils.signal_handling"
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if torchs else before)
        return iterator


class _Failure:
    """A `UserError` on its way out of a worker, which would wrap the exception itself into its traceback."""

    def __init__(self, message: str):
        self.message = message

    def pin_memory(self) -> _Failure:
        return self


class _Items(Dataset):
    def __init__(self, make: Callable[[int], Any], pack: bool):
        self.make, self.pack = make, pack
        self._blocks: SharedBlocks | None = None

    def blocks(self, workers: int) -> SharedBlocks:
        """This worker's shared memory."""
        self._blocks = self._blocks or worker_blocks(workers)
        return self._blocks

    def __getitem__(self, number: int) -> Any:
        try:
            item = self.make(number)
        except UserError as error:
            return _Failure(str(error))
        return Parcel(item) if self.pack and get_worker_info() else item


def _unchanged(item: Any) -> Any:
    return item


_REQUESTS = [getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Signals sent meanwhile arrive afterwards here, and wait for `start_worker` in the processes started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_REQUESTS, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker: int = 0) -> None:
    """To be called first in a worker process: one thread, and signals are the main process's business.

    Signals that ask a run to stop reach all its processes; the main one finishes its step, for which it still needs
    the workers. They leave when it does.
    """
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)  # held back since before the process began
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent_only, daemon=True).start()
    torch.set_num_threads(1)


def _obey_parent_only() -> None:
    # Python ends its remaining children with SIGTERM and waits for them: ignored altogether, both would wait for ever.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
