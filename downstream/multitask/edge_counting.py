"""Boundaries of many images matched by a pool of processes: one image takes a second or two."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.worker_loader import start_worker

from .metrics.edges import EdgeMetric

_AHEAD = 4
"""Images that may wait for each process; edge maps in memory are bounded by that."""


def is_counted(metric: Any) -> bool:
    """Whether a metric is so slow that an :class:`EdgeCounter` should feed it."""
    return isinstance(metric, EdgeMetric)


class EdgeCounter:
    """Feeds an `EdgeMetric` from a pool; the result is that of its own ``update``. A context manager.

    Args:
        metric: where the counts of the images are added, in any order.
        processes: of the pool, at least 1.
    """

    def __init__(self, metric: EdgeMetric, processes: int):
        self.metric, self.processes = metric, processes
        self._settings = (metric.max_distance, tuple(metric.thresholds.tolist()), metric.suppress, metric.smoothing)
        self._waiting: deque[Future[np.ndarray]] = deque()

    def __enter__(self) -> EdgeCounter:
        # As torch's DataLoader does by default; forked processes neither import anything nor touch the GPU.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        self._pool = ProcessPoolExecutor(
            self.processes,
            mp_context=multiprocessing.get_context(method),
            initializer=_start,
            initargs=(os.getpid(),),
        )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def update(self, prediction: Tensor, values: Tensor, valid: Tensor) -> None:
        """Add one image, as `EdgeMetric.update`; its counts arrive later.

        Raises:
            UserError: a process of the pool died.
        """
        image = (prediction.detach().float().cpu().numpy(), values.cpu().numpy(), valid.cpu().numpy())
        try:
            self._waiting.append(self._pool.submit(image_counts, *image, self._settings))
        except BrokenProcessPool as error:
            raise _died() from error
        while len(self._waiting) > _AHEAD * self.processes:
            self._take()

    def finish(self) -> None:
        """Wait for all counts.

        Raises:
            UserError: a process of the pool died.
        """
        while self._waiting:
            self._take()

    def _take(self) -> None:
        try:
            self.metric.add(torch.from_numpy(self._waiting.popleft().result()))
        except BrokenProcessPool as error:
            raise _died() from error


def image_counts(prediction: np.ndarray, values: np.ndarray, valid: np.ndarray, settings: tuple) -> np.ndarray:
    """(T, 4) int64 counts of one image: those that ``EdgeMetric(*settings).update`` would add."""
    metric = EdgeMetric(*settings)
    metric.update(*(torch.from_numpy(array) for array in (prediction, values, valid)))
    return metric.sums["counts"].numpy()


def _start(parent: int) -> None:
    start_worker()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    # Processes of a pool wait for work for ever, also if the main process was killed.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _died() -> UserError:
    return UserError(
        "a process that matches edges died; mostly memory ran out: lower data.workers, or ask for more memory"
    )
