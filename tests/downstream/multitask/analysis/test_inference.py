"""Time and memory of passes."""

import subprocess
import sys
import time
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyscene.downstream.multitask.analysis.inference import (
    WARM_UP,
    Network,
    Setting,
    latencies,
    paired_ratios,
    peak_memory,
    prepared,
    resident_peak,
    run,
)
from polyscene.downstream.multitask.models.build import ModelOptions
from polyscene.runtime.errors import UserError

MIB = 2**20
NETWORK = Network(ModelOptions("multi_task", head="aspp", head_width=8), "resnet10t", {"segmentation": 5, "depth": 1})


PEAKS = """
import torch
from polyscene.downstream.multitask.analysis.inference import resident_peak

def allocate(mib):
    return torch.ones(mib * 2**20 // 4)

def one_after_the_other():
    for _ in range(3):
        allocate(64)

def together():
    kept = [allocate(64) for _ in range(3)]
    return len(kept)

one_after_the_other()  # what is freed here must not hide what is taken below
print(*(resident_peak(work) for work in (one_after_the_other, together, lambda: None)))
"""


@pytest.mark.skipif(resident_peak(lambda: None) is None, reason="the system does not tell")
def test_the_peak_is_what_is_alive_at_once():
    # In a process of its own: what threads of other tests still free or take would count.
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, three, nothing = map(int, done.stdout.split())
    assert one == pytest.approx(64 * MIB, rel=0.05)
    assert three == pytest.approx(192 * MIB, rel=0.05)
    assert nothing < MIB


class Live(TorchDispatchMode):
    """Bytes of all tensors that operations have made and that are alive, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return made

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def test_memory_of_a_pass_covers_its_live_tensors():
    setting = Setting((256, 320), batch=4)
    model = prepared(NETWORK.build(), "cpu")
    images = setting.images()
    with Live() as live:
        run(model, images, "fp32")
    weights = 4 * sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    found = peak_memory(NETWORK, setting)
    assert found.weights == pytest.approx(weights, rel=1e-3)
    if found.peak is not None:
        # Beside tensors there is the working memory of convolutions.
        assert 0.9 * live.most < found.peak - found.weights < 2.5 * live.most + 4 * MIB


class Sleeper(nn.Module):
    """Takes its time, and notes when it is run."""

    def __init__(self, name, seconds, log):
        super().__init__()
        self.name, self.seconds, self.log = name, seconds, log

    def forward(self, images):
        self.log.append(self.name)
        time.sleep(self.seconds)


def test_models_take_turns():
    log, done = [], []
    models = {name: Sleeper(name, seconds, log) for name, seconds in (("a", 0.01), ("b", 0.03), ("c", 0.0))}
    times = latencies(models, Setting((8, 8)), 4, progress=done.append)
    assert log[: 3 * WARM_UP] == ["a"] * WARM_UP + ["b"] * WARM_UP + ["c"] * WARM_UP
    assert "".join(log[3 * WARM_UP :]) == "abcbcacababc"
    assert done == list(range(1, 13))
    assert [len(each) for each in times.values()] == [4, 4, 4]
    assert min(times["c"]) < 0.01 <= min(times["a"])
    assert min(times["b"]) >= 0.03


def test_ratios_are_of_the_same_round():
    assert paired_ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="argument 2"):
        paired_ratios([1.0], [1.0, 2.0])


def test_a_pass_without_room_is_one_line():
    with pytest.raises(UserError, match=r"1048576x2097152 with batch=1 needs more memory"):
        peak_memory(NETWORK, Setting((2**20, 2**21)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_pass_on_a_gpu_covers_its_live_tensors():
    setting = Setting((256, 320), batch=4, device="cuda")
    model = prepared(NETWORK.build(), "cuda")
    images = setting.images()
    with Live() as live:
        run(model, images, "fp32")
    del model
    found = peak_memory(NETWORK, setting)
    assert 0.9 * live.most < found.peak - found.weights
