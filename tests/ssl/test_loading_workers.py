"""Worker processes of the loader: what they ignore, how they end, and what is said when one dies."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loading_helpers import batches_of, sample

from polyscene.runtime import worker_loader
from polyscene.runtime.errors import UserError
from polyscene.runtime.sampling import StepIndices
from polyscene.ssl import loading
from polyscene.ssl.image_readers import FileReader
from polyscene.ssl.loading import image_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def worker_facts(epoch, indices, sizes):
    ignored = [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)]
    return os.getpid(), ignored, torch.get_num_threads()


def test_workers_live_across_epochs_ignore_signals_and_use_one_thread(source):
    facts = [batch.params for batch in batches_of(source, end=20, workers=2, sample_views=worker_facts)]
    assert len({pid for pid, _, _ in facts}) == 2
    assert os.getpid() not in {pid for pid, _, _ in facts}
    assert all(all(ignored) and threads == 1 for _, ignored, threads in facts)


@pytest.mark.parametrize("late", [0, 1.5])
def test_signals_that_ask_for_an_end_leave_the_workers_to_the_main_process(source, late, monkeypatch):
    start = worker_loader.start_worker

    def second_comes_late(worker):
        time.sleep(late * worker)
        start(worker)

    monkeypatch.setattr(worker_loader, "start_worker", second_comes_late)
    loader = image_loader(
        source, batch_size=4, rank=0, world_size=1, seed=0, start_step=0, end_step=30, workers=2, sample_views=sample
    )
    iterator = iter(loader)
    next(iterator)
    children = multiprocessing.active_children()
    # The workers obey a SIGTERM from their parent; this one comes from elsewhere, as a scheduler's does.
    for child in children:
        for name in ("INT", "TERM", "USR2"):
            subprocess.run(["sh", "-c", f"kill -{name} {child.pid}"], check=True)
    assert len(list(iterator)) == 29
    assert not any(child.is_alive() for child in children), "they leave with the loader"


def test_leaving_early_ends_the_workers(source):
    loader = image_loader(
        source, batch_size=4, rank=0, world_size=1, seed=0, start_step=0, end_step=30, workers=2, sample_views=sample
    )
    started = time.monotonic()
    for _ in loader:
        children = multiprocessing.active_children()
        break
    assert len(children) == 2
    for child in children:
        child.join(20)
    assert not any(child.is_alive() for child in children)
    assert time.monotonic() - started < 20


UNFINISHED = """
import builtins, sys
from polyscene.ssl.loading import image_loader
from polyscene.ssl.sources import open_source

def sample(epoch, indices, sizes):
    return None

loader = image_loader(open_source("folder", sys.argv[1]), batch_size=4, rank=0, world_size=1, seed=0, start_step=0,
                      end_step=50, workers=2, sample_views=sample)
builtins.kept = iter(loader)  # somebody holds on to it until the very end
next(builtins.kept)
import multiprocessing, os
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), 9)
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("end", ["return", "kill"])
def test_no_worker_outlives_the_main_process_or_holds_it_back(source, end):
    done = subprocess.run(
        [sys.executable, "-c", UNFINISHED, source.root, end], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (0 if end == "return" else -signal.SIGKILL), done.stderr
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def kill_yourself(epoch, indices, sizes):
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("another_loader_before", [False, True])
def test_a_killed_worker_is_one_line_where_the_next_batch_is_asked_for(source, another_loader_before):
    if another_loader_before:  # it installs torch's handler of dying children
        list(torch.utils.data.DataLoader([1, 2], num_workers=1))
    loader = image_loader(
        source,
        batch_size=4,
        rank=0,
        world_size=1,
        seed=0,
        start_step=0,
        end_step=20,
        workers=1,
        sample_views=kill_yourself,
    )
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    assert getattr(signal.getsignal(signal.SIGCHLD), "__module__", None) != "torch.utils.data._utils.signal_handling"
    (worker,) = multiprocessing.active_children()
    worker.join(20)  # killed while this process is busy with something else: nothing is raised here
    assert worker.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match=r"a process that decodes images died .*lower data\.workers") as caught:
        list(iterator)
    assert "\n" not in str(caught.value)


def broken_sampler(epoch, indices, sizes):
    raise ValueError("a fault of ours")


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_the_program_keep_their_traceback(source, workers):
    with pytest.raises(ValueError, match="a fault of ours"):
        batches_of(source, workers=workers, sample_views=broken_sampler)


def test_what_spawned_workers_need_can_be_pickled(source):
    """Where processes are not forked, everything the workers need is pickled."""
    indices = StepIndices(len(source), batch_size=4, rank=0, world_size=1, seed=0)
    make = loading._Batches(source, indices, read_sizes, FileReader(source))
    copy = pickle.loads(pickle.dumps(make))
    torch.testing.assert_close(copy(2).pixels, make(2).pixels)
    torch.testing.assert_close(copy(2).params, make(2).params)


def read_sizes(epoch, indices, sizes):
    return sizes.clone()
