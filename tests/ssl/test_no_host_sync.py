"""Between two lines of the log the host never asks the device for a value.

On any machine: the engine's steps run on torch's meta device, whose tensors have shapes and no numbers. Whatever would
read one fails there, while host-side data (the views' parameters, image sizes) are ordinary tensors and may be read. It
is the path that a GPU takes: batched rendering, forward and backward passes, optimiser, queues. On a GPU: torch itself
raises where the host would wait.
"""

import pytest
import torch
from fake_gpu import NoCheck
from tiny import image_batches, make_model
from torch.utils._python_dispatch import TorchDispatchMode

from polyscene.runtime.distributed import World
from polyscene.runtime.run import RunDirectory
from polyscene.ssl.engine import Schedule, train
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.state import TrainingState
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.spec import ViewSpec

VIEWS = ViewSpec(large=CropGroup(2, 16, (0.2, 1.0)), small=CropGroup(2, 8, (0.05, 0.14)), augmentation="mix")
BATCH, LOG_EVERY = 8, 5
READS = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "if": lambda x: "yes" if x[0] > 0 else "no",
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "copy to the host": lambda x: torch.empty(3).copy_(x),
}


class NoWaitingCopies(TorchDispatchMode):
    """Refuses copies from the host for which it would wait: that is until the device has done all its work."""

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        more = more or {}
        if function is torch.ops.aten._to_copy.default and arguments[0].device.type == "cpu":
            device = more.get("device")
            assert device is None or device.type == "cpu" or more.get("non_blocking"), "a copy that waits"
        if function is torch.ops.aten.copy_.default:
            target, source, *rest = arguments
            assert target.device == source.device or source.device.type != "cpu" or any(rest), "a copy that waits"
        return function(*arguments, **more)


@pytest.fixture
def autocast_anywhere(monkeypatch):
    """Autocast knows no meta device: there it stays off, as the same operations run."""
    original = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda device, *rest, **more: original(device.replace("meta", "cpu"), *rest, **more)
    )


def batches(device):
    for batch in image_batches(VIEWS, BATCH):
        yield batch.pin_memory() if device.type == "cuda" else batch


def prepare(device, folder, precision, log_every=LOG_EVERY, end_step=50):
    world = World(rank=0, size=1, device=device)
    model = make_model().to(device)
    fused = device.type != "meta"  # as in a run; the meta device has no such kernel
    optimizer = torch.optim.SGD(
        model.query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=not fused, fused=fused
    )
    plan = plan_normalization("split", 4, BATCH, 1)
    runner = StepRunner(model, optimizer, LossSettings(k=3), plan, world, seed=0, precision=precision)
    state = TrainingState(model, optimizer, world, {"arch": "tiny", "dataset": "x", "config_hash": "0"})
    schedule = Schedule(
        steps_per_epoch=10,
        total_steps=50,
        end_step=end_step,
        learning_rate=0.1,
        log_every=log_every,
        save_every_minutes=None,
    )
    return runner, state, batches(device), VIEWS, schedule, RunDirectory(folder)


@pytest.mark.parametrize("read", READS)
def test_numbers_of_the_meta_device_cannot_be_read(read):
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        READS[read](torch.ones(3, device="meta"))


@pytest.mark.parametrize("copy", [lambda x: x.to("meta"), lambda x: torch.empty(3, device="meta").copy_(x)])
def test_waiting_copies_are_noticed(copy):
    with pytest.raises(AssertionError, match="a copy that waits"), NoWaitingCopies():
        copy(torch.ones(3))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_read_between_two_lines_of_the_log(precision, tmp_path, monkeypatch, autocast_anywhere):
    monkeypatch.setattr("polyscene.ssl.step.FiniteCheck", NoCheck)
    arguments = prepare(torch.device("meta"), tmp_path, precision)
    state = arguments[1]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"), NoWaitingCopies():
        train(*arguments)
    assert state.step == LOG_EVERY  # that line of the log is the first to want a number


@pytest.mark.parametrize("read", READS)
def test_a_read_in_the_step_would_be_noticed(read, tmp_path, monkeypatch, autocast_anywhere):
    monkeypatch.setattr("polyscene.ssl.step.FiniteCheck", NoCheck)
    arguments = prepare(torch.device("meta"), tmp_path, "fp32")
    monkeypatch.setattr(arguments[0].model.queue, "enqueue", lambda keys, *_, **__: READS[read](keys[:3, 0]))
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        train(*arguments)
    assert arguments[1].step == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_is_not_waited_for(precision, tmp_path):
    """Torch raises at every call that waits for the device; the first steps may, as they set things up."""
    runner, state, loader, views, schedule, run = prepare(torch.device("cuda"), tmp_path, precision, 50, end_step=12)

    def watched():
        for step, batch in enumerate(loader):
            torch.cuda.set_sync_debug_mode("error" if 4 <= step < 11 else "default")
            yield batch

    try:
        assert train(runner, state, watched(), views, schedule, run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
