"""All strategies, small tasks to balance, and processes that are threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from polyscene.downstream.multitask.balancing.build import make_balancer
from polyscene.runtime.distributed import World

# Settings with which every strategy has moved within a few steps.
SETTINGS = {
    "fixed": {},
    "uniform": {},
    "uncertainty": {"classification": ("a",)},
    "gradnorm": {"gradnorm_alpha": 1.5},
    "dwa": {"dwa_period": 2},
    "dtp": {"dtp_smoothing": 0.3},
    "mgda": {},
    "mgda l2": {"mgda_normalize": "l2"},
    "mgda loss+": {"mgda_normalize": "loss+"},
    "similar_losses": {"measure_iterations": 3, "measure_repeat": True},
}


@pytest.fixture(params=SETTINGS)
def strategy(request):
    """(tasks, weights) -> a fresh balancer of one of the strategies."""

    def make(tasks, weights=None, **changes):
        return make_balancer(request.param.split()[0], tasks, weights, **{**SETTINGS[request.param], **changes})

    make.name = request.param
    return make


@pytest.fixture(scope="session")
def alone():
    """One process."""
    return World(rank=0, size=1, device=torch.device("cpu"))


class ThreadWorld:
    """A rank of processes that are threads; its mean is over them."""

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._barrier, self._slots = barrier, slots

    def mean(self, tensor):
        self._slots[self.rank] = tensor.detach().clone()
        self._barrier.wait()
        found = sum(self._slots[rank] for rank in range(self.size)) / self.size
        self._barrier.wait()
        return found


@pytest.fixture
def on_ranks():
    """(function of a world, number of ranks) -> its results, in rank order."""

    def run(function, size=2):
        barrier, slots = threading.Barrier(size, timeout=20), [None] * size
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(lambda rank: function(ThreadWorld(rank, size, barrier, slots)), range(size)))

    return run
