"""Rendering beside the step: the order of events on a stand-in for a GPU, on a CPU, and the results on a GPU."""

from contextlib import contextmanager

import pytest
import torch

from polyscene.ssl.overlap import SideStream


class StandIn:
    """Streams and tensors that only write down what happens to them."""

    def __init__(self):
        self.log = []
        self.entered = ["main"]

    def stream(self, name):
        stand_in = self

        class Stream:
            def wait_stream(self, other):
                stand_in.log.append(f"{name} waits for {other.name}")

        Stream.name = name
        return Stream()

    @contextmanager
    def enter(self, stream):
        self.entered.append(stream.name)
        yield
        self.entered.pop()

    def tensor(self):
        stand_in = self

        class Tensor:
            is_cuda = True

            def record_stream(self, stream):
                stand_in.log.append(f"kept for {stream.name}")

        return Tensor()

    def launch(self, what):
        self.log.append(f"{what} on {self.entered[-1]}")


@pytest.fixture
def gpu(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stand_in.stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stand_in.stream(stand_in.entered[-1]))
    monkeypatch.setattr(torch.cuda, "stream", stand_in.enter)
    return stand_in


def test_the_step_waits_for_its_views_and_nothing_else_waits(gpu):
    side = SideStream(torch.device("cuda"))
    for step in range(2):

        def work(step=step):
            gpu.launch(f"views {step}")
            return [gpu.tensor(), gpu.tensor()]

        assert len(side.run(work)) == 2
        gpu.launch(f"step {step}")
    assert gpu.log == [
        "side waits for main",  # once, for what was there before
        "views 0 on side",
        "main waits for side",
        "kept for main",
        "kept for main",
        "step 0 on main",
        "views 1 on side",  # does not wait for step 0
        "main waits for side",
        "kept for main",
        "kept for main",
        "step 1 on main",
    ]


def test_what_the_work_reads_is_kept_until_it_is_done(gpu):
    side = SideStream(torch.device("cuda"))
    gpu.log.clear()
    side.run(lambda: gpu.launch("views") or [], reads=[gpu.tensor(), torch.ones(2)])
    assert gpu.log == ["kept for side", "views on side", "main waits for side"]


def test_on_a_cpu_the_work_is_done_at_once():
    made = [torch.ones(2)]
    assert SideStream(torch.device("cpu")).run(lambda: made, reads=made) is made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_numbers_as_one_stream():
    side, device = SideStream(torch.device("cuda")), torch.device("cuda")
    weight = torch.randn(2048, 2048, device=device) / 45
    total, expected = torch.zeros(2048, device=device), torch.zeros(2048, device=device)
    inputs = [torch.randn(2048, 2048).pin_memory() for _ in range(20)]

    def busy(x):
        for _ in range(20):
            x = torch.tanh(x @ weight)
        return x

    for x in inputs:
        (moved,) = side.run(lambda x=x: [busy(x.to(device, non_blocking=True))])
        total += busy(moved).sum(dim=0)
        del moved  # its memory is free for the side stream once the main stream has read it
    for x in inputs:
        expected += busy(busy(x.to(device))).sum(dim=0)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)
