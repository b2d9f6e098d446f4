"""The path that only a GPU takes, without a GPU: torch's fake tensors know their device and have no numbers.

What the meta device of `test_no_host_sync` cannot tell: tensors of two devices in one operation, the branches for GPUs
(half precision, blur by products of matrices, pinned staging), and what autocast does there. Fakes have no backward
pass on a GPU that is not there; it is left out.
"""

from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from fake_gpu import GPU, NoCheck, Watch, keep_autocast_on
from tiny import image_batches, make_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from polyscene.runtime.distributed import World
from polyscene.runtime.run import RunDirectory
from polyscene.ssl.engine import Schedule, train
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.state import TrainingState
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views import colour
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.spec import ViewSpec

FLOAT = torch.float32
BATCH, STEPS = 32, 2
aten = torch.ops.aten

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class Streams:
    """Stands in for streams: there is nothing to wait for."""

    def wait_stream(self, other):
        pass


class Reached(Exception):
    """The first line of the log is written."""


class Alone(World):
    """A single process, whose line of the log ends the test: it is the first thing to want numbers."""

    def mean(self, tensor):
        assert (tensor.device, tensor.shape) == (GPU, (8,))
        raise Reached


@pytest.fixture
def fakes(monkeypatch):
    """A context in which tensors are fakes; those made before keep their numbers on the host."""

    def of_host_only(name):
        original = getattr(torch.Tensor, name)

        def read(tensor):
            assert not isinstance(tensor, FakeTensor), f"the host wants numbers of {tensor}"
            with unset_fake_temporarily():
                return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("numpy", "tolist"):  # fakes raise by themselves
        of_host_only(name)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: Streams())
    monkeypatch.setattr(torch.cuda, "stream", contextmanager(lambda stream: (yield)))
    keep_autocast_on(monkeypatch)
    monkeypatch.setattr("polyscene.ssl.step.FiniteCheck", NoCheck)

    @contextmanager
    def entered():
        with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
            yield watch

    return entered


def run(fakes, folder, precision, kind):
    """Train up to the first line of the log, which wants numbers; returns the state and what was watched."""
    views = ViewSpec(CropGroup(3, 16, (0.2, 1.0)), CropGroup(2, 8, (0.05, 0.14)))
    loader = list(islice(image_batches(views, BATCH), STEPS))
    model, world = make_model(queue=3000), Alone(rank=0, size=1, device=GPU)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # fakes cannot move into real parameters
    try:
        with fakes() as watch:
            model.to(GPU, memory_format=torch.channels_last, non_blocking=True)
            optimizer = torch.optim.SGD(model.query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
            plan = plan_normalization(kind, BATCH // 2, BATCH, 1)
            runner = StepRunner(model, optimizer, LossSettings(k=3), plan, world, seed=0, precision=precision)
            state = TrainingState(model, optimizer, world, {})
            schedule = Schedule(
                steps_per_epoch=9, total_steps=9, end_step=9, learning_rate=1, log_every=STEPS, save_every_minutes=None
            )
            with pytest.raises(Reached):
                train(runner, state, loader, views, schedule, RunDirectory(folder))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    return state, watch


@pytest.mark.parametrize(("precision", "type_", "kind"), [("bf16", torch.bfloat16, "split"), ("fp32", FLOAT, "sync")])
def test_steps_stay_on_the_device_and_are_not_waited_for(precision, type_, kind, fakes, tmp_path, monkeypatch):
    original, seen = colour.apply, set()

    def apply(operation, images, amounts, largest):
        changed = original(operation, images, amounts, largest)
        assert (changed.device, changed.dtype, amounts.device) == (GPU, FLOAT, GPU)
        seen.add(operation)
        return changed

    monkeypatch.setattr(colour, "apply", apply)
    state, watch = run(fakes, tmp_path, precision, kind)
    assert state.step == STEPS
    assert seen == set(colour.OPERATIONS)
    assert watch.types == {
        (aten.bmm.default, torch.float16),  # rendering
        (aten.convolution.default, type_),
        (aten.addmm.default, type_),
        (aten.mm.out, FLOAT),  # losses
    }


FAULTS = {
    "item": lambda x: x[0, 0].item(),
    "if": lambda x: 1 if x[0, 0] > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "boolean index": lambda x: x[x > 0],
    "copy from the host": lambda x: torch.ones(3).to(GPU),
    "two devices": lambda x: x + torch.ones(3, 3),
    "two types": lambda x: x.bfloat16() @ x,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, fakes):
    with fakes():
        x = torch.ones(3, 3, device=GPU)
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            FAULTS[fault](x)


def test_a_fault_in_the_step_is_noticed(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("polyscene.ssl.moco.queue.KeyQueue.enqueue", lambda queue, keys, *_, **__: keys[0, 0].item())
    with pytest.raises(RuntimeError):
        run(fakes, tmp_path, "fp32", "split")
