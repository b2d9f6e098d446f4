"""Batches are a function of (seed, step): same for any number of workers, any first step, any number of processes."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.ssl import batches, loading
from polyscene.ssl.batches import ImageBatch, pack_images
from polyscene.ssl.loading import UnreadableLog, epoch_order, image_loader, steps_per_epoch
from polyscene.ssl.sources import open_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

IMAGES = 23


@dataclass
class Params:
    values: torch.Tensor
    device: str = "cpu"

    def to(self, device, non_blocking=False):
        return Params(self.values.to(device), str(device))


def sample(epoch, indices, sizes) -> Params:
    return Params(torch.cat([torch.full((len(indices), 1), epoch), indices[:, None], sizes], dim=1))


@pytest.fixture
def source(tmp_path):
    """23 images of different sizes in two folders; the red value of image i is 10 i."""
    for i in range(IMAGES):
        path = tmp_path / "data" / f"{'ab'[i % 2]}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5 + i % 4, 6 + i % 3), (10 * i, i, 0)).save(path)
    return open_source("folder", tmp_path / "data")


def batches_of(source, start=0, end=9, workers=0, rank=0, world=1, batch_size=4, seed=0, **options):
    options = {"sample_views": sample, **options}
    return list(
        image_loader(
            source,
            batch_size=batch_size,
            rank=rank,
            world_size=world,
            seed=seed,
            start_step=start,
            end_step=end,
            workers=workers,
            **options,
        )
    )


def assert_equal(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "sizes", "indices", "labels", "shown"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    torch.testing.assert_close(one.params.values, other.params.values, rtol=0, atol=0)
    assert (one.step, one.epoch, one.unreadable) == (other.step, other.epoch, other.unreadable)


# Order


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
def test_order_is_a_permutation_that_changes_with_seed_and_epoch(count):
    orders = [epoch_order(seed, epoch, count) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count > 2:
        assert len({order.tobytes() for order in orders}) == len(orders)
    np.testing.assert_array_equal(epoch_order(1, 2, count), orders[-1])


def test_order_never_changes_between_versions():
    assert epoch_order(0, 0, 8).tolist() == [7, 3, 4, 5, 2, 6, 1, 0]


def test_every_place_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(1200):
        counts[epoch_order(3, epoch, 6), np.arange(6)] += 1
    assert np.abs(counts - 200).max() < 5 * 13  # standard deviation 12.9


def test_steps_per_epoch():
    assert steps_per_epoch(118_287, 256) == 462
    assert steps_per_epoch(8, 8) == 1
    with pytest.raises(UserError, match="7 images do not fill one batch of 8"):
        steps_per_epoch(7, 8)
    with pytest.raises(UserError, match="batch_size=0"):
        steps_per_epoch(7, 0)


# Batches


def test_an_epoch_shows_whole_images_once_with_their_labels(source):
    found = batches_of(source, end=5)
    seen = torch.cat([batch.indices for batch in found])
    assert len(seen) == len(set(seen.tolist())) == 20  # the last 3 do not fill a batch
    assert seen.tolist() == epoch_order(0, 0, IMAGES)[:20].tolist()
    for step, batch in enumerate(found):
        assert (batch.step, batch.epoch, len(batch), batch.unreadable) == (step, 0, 4, [])
        torch.testing.assert_close(batch.shown, batch.indices)
        for image, index, label, size in zip(batch.images(), batch.indices, batch.labels, batch.sizes):
            torch.testing.assert_close(image, read_image(source.path(int(index))))
            assert image.permute(1, 2, 0).is_contiguous()
            assert image.untyped_storage().data_ptr() == batch.pixels.untyped_storage().data_ptr(), "copied"
            assert tuple(size.tolist()) == image.shape[1:]
            assert label == source.labels[index]
        torch.testing.assert_close(batch.params.values, sample(0, batch.indices, batch.sizes).values)


def test_another_epoch_another_order(source):
    found = batches_of(source, end=10)
    assert [batch.epoch for batch in found] == [0] * 5 + [1] * 5
    assert torch.cat([b.indices for b in found[5:]]).tolist() == epoch_order(0, 1, IMAGES)[:20].tolist()


def test_any_number_of_workers_and_any_first_step(source):
    expected = batches_of(source, end=12)
    for workers in (1, 4):
        for batch, same in zip(expected, batches_of(source, end=12, workers=workers), strict=True):
            assert_equal(batch, same)
    for start, workers in ((3, 0), (5, 2), (11, 0), (12, 0)):
        resumed = batches_of(source, start=start, end=12, workers=workers)
        for batch, same in zip(expected[start:], resumed, strict=True):
            assert_equal(batch, same)
    assert batches_of(source, start=13, end=12) == []


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batch(source, world):
    whole = batches_of(source, end=7)
    parts = [batches_of(source, end=7, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        for name in ("pixels", "indices", "labels"):
            joined = torch.cat([getattr(part[step], name) for part in parts])
            torch.testing.assert_close(joined, getattr(batch, name))


def test_the_loader_knows_its_length_and_leaves_torchs_generator_alone(source):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loader = image_loader(
        source, batch_size=4, rank=0, world_size=1, seed=0, start_step=2, end_step=9, workers=1, sample_views=sample
    )
    assert len(loader) == 7
    next(iter(loader))
    torch.testing.assert_close(torch.rand(3), expected)


def test_impossible_numbers(source):
    with pytest.raises(UserError, match="batch_size=4 is not a multiple of 3 processes"):
        batches_of(source, world=3)
    with pytest.raises(UserError, match="23 images do not fill one batch of 24"):
        batches_of(source, batch_size=24)
    with pytest.raises(UserError, match="workers=-1"):
        batches_of(source, workers=-1)
    with pytest.raises(UserError, match="rank 2 of 2"):
        batches_of(source, rank=2, world=2)


def test_packing():
    images = [torch.arange(3 * h * w, dtype=torch.uint8).view(3, h, w) for h, w in ((1, 1), (2, 5), (4, 3))]
    pixels, sizes = pack_images(images)
    zeros = torch.zeros(3, dtype=torch.int64)
    batch = ImageBatch(pixels, sizes, zeros, None, zeros, [], 0, 0, None)
    assert len(pixels) == 3 * (1 + 10 + 12)
    for image, packed in zip(images, batch.images(), strict=True):
        torch.testing.assert_close(packed, image, check_stride=False)


def test_moving_a_batch(source):
    batch = batches_of(source, end=1)[0]
    moved = batch.to("meta")
    assert moved.pixels.device.type == moved.labels.device.type == moved.params.device == "meta"
    assert moved.sizes.device.type == moved.indices.device.type == moved.shown.device.type == "cpu"
    assert [image.shape for image in moved.images()] == [image.shape for image in batch.images()]
    assert batch.pixels.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches(source):
    for batch in batches_of(source, workers=1, pin_memory=True):
        assert batch.pixels.is_pinned()
        assert batch.labels.is_pinned()
        assert batch.to("cuda", non_blocking=True).pixels.is_cuda


@pytest.mark.parametrize("fits", [True, False])
def test_with_and_without_room_in_shared_memory(source, monkeypatch, fits):
    monkeypatch.setattr(batches, "_fits_shared_memory", lambda size: fits)
    for batch, same in zip(batches_of(source), batches_of(source, workers=2), strict=True):
        assert_equal(batch, same)
        assert same.pixels.is_shared() == fits
        same.pixels.add_(1)  # writable, without a warning


def test_small_shared_memory_is_noticed(monkeypatch):
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda path: usage)
    assert batches._fits_shared_memory(31 << 20)
    assert not batches._fits_shared_memory(32 << 20)


def test_pickling_keeps_everything(source):
    batch = batches_of(source, end=1)[0]
    assert_equal(batch, pickle.loads(pickle.dumps(batch)))


# Unreadable images


def damage(source, index: int, content: bytes = b"") -> None:
    source.path(index).write_bytes(content)


def test_replacements_are_the_same_for_any_workers_and_any_epoch(source):
    bad = (3, 8)
    for index in bad:
        damage(source, index)
    found = batches_of(source, end=15)
    replaced: dict[int, set[int]] = {index: set() for index in bad}
    for batch in found:
        wrong = [index for index in batch.indices.tolist() if index in bad]
        assert {index for index, _ in batch.unreadable} >= set(wrong)
        for index, shown, image, label in zip(
            batch.indices.tolist(), batch.shown.tolist(), batch.images(), batch.labels
        ):
            assert shown not in bad
            assert (shown == index) == (index not in bad)
            torch.testing.assert_close(image, read_image(source.path(shown)))
            assert label == source.labels[shown]
            if index in bad:
                replaced[index].add(shown)
    assert all(len(others) == 1 for others in replaced.values())
    for workers in (1, 4):
        for batch, same in zip(found, batches_of(source, end=15, workers=workers), strict=True):
            assert_equal(batch, same)


def test_unreadable_images_come_with_name_and_reason(source):
    damage(source, 3, b"<html>\n404</html>")
    entries = {entry for batch in batches_of(source, end=5) for entry in batch.unreadable}
    assert entries <= {(3, f"{source.name(3)}\tnot an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)")}


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_ends_with_one_line(source, workers):
    for index in range(IMAGES):
        damage(source, index)
    with pytest.raises(UserError, match=r"cannot be read \(the file is empty\), and neither can any of") as caught:
        batches_of(source, workers=workers)
    assert "\n" not in str(caught.value)


def test_a_deleted_image_is_unreadable(source):
    index = int(epoch_order(0, 0, IMAGES)[0])
    source.path(index).unlink()
    batch = batches_of(source, end=1)[0]
    assert "No such file" in dict(batch.unreadable)[index]


def test_the_log_lists_each_image_once_and_survives_a_restart(tmp_path):
    path = tmp_path / "unreadable_images.txt"
    log = UnreadableLog(path, 100, 0.03)
    assert not path.exists()
    log.add([])
    log.add([(4, "a/4.jpg\tthe file is empty"), (4, "a/4.jpg\tthe file is empty"), (5, "ä 5.jpg\ttruncated")])
    log.add([(4, "a/4.jpg\tthe file is empty")])
    expected = "a/4.jpg\tthe file is empty\nä 5.jpg\ttruncated\n"
    assert path.read_text() == expected
    again = UnreadableLog(path, 100, 0.03)
    assert len(again) == 2
    again.add([(5, "ä 5.jpg\ttruncated"), (6, "c.jpg\tbroken")])
    assert path.read_text() == expected + "c.jpg\tbroken\n"
    with pytest.raises(UserError, match=r"4 of 100 images \(4\.00%\) cannot be decoded, more than .*=0\.03") as caught:
        again.add([(7, "d.jpg\tbroken")])
    assert str(path) in str(caught.value)
    assert "d.jpg" in path.read_text(), "listed before the run ends"
    after_repair = UnreadableLog(path, 100, 0.03)
    after_repair.add([])  # nothing unreadable any more: no reason to stop


def test_the_share_of_no_tolerance(tmp_path):
    log = UnreadableLog(tmp_path / "list.txt", 1000, 0.0)
    log.add([])
    with pytest.raises(UserError, match="1 of 1000 images"):
        log.add([(0, "x\ty")])


def test_only_one_process_writes_but_all_count(tmp_path):
    silent = UnreadableLog(tmp_path / "list.txt", 10, 0.1, write=False)
    silent.add([(1, "a\tb")])
    assert not (tmp_path / "list.txt").exists()
    with pytest.raises(UserError, match="2 of 10"):
        silent.add([(2, "c\td")])


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\tbroken\nb.jp")
    log = UnreadableLog(path, 10, 0.5)
    assert log.names == {"a.jpg"}
    log.add([(2, "b.jpg\tbroken")])
    assert path.read_text() == "a.jpg\tbroken\nb.jpg\tbroken\n"


def test_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    UnreadableLog(tmp_path / "list.txt", 10, 0.5).add([(1, f"{name}\tbroken")])
    assert UnreadableLog(tmp_path / "list.txt", 10, 0.5).names == {name}


# Worker processes


def worker_facts(epoch, indices, sizes):
    ignored = [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)]
    return os.getpid(), ignored, torch.get_num_threads()


def test_workers_live_across_epochs_ignore_signals_and_use_one_thread(source):
    facts = [batch.params for batch in batches_of(source, end=20, workers=2, sample_views=worker_facts)]
    assert len({pid for pid, _, _ in facts}) == 2
    assert os.getpid() not in {pid for pid, _, _ in facts}
    assert all(all(ignored) and threads == 1 for _, ignored, threads in facts)


def test_signals_that_ask_for_an_end_leave_the_workers_to_the_main_process(source):
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
    dataset = loading._StepDataset(source, 4, 0, 1, 0, read_sizes)
    copy = pickle.loads(pickle.dumps(dataset))
    torch.testing.assert_close(copy[2].pixels, dataset[2].pixels)
    torch.testing.assert_close(copy[2].params, dataset[2].params)


def read_sizes(epoch, indices, sizes):
    return sizes.clone()


# Real photographs, where they are at hand


def photographs() -> Path | None:
    places = (os.environ.get("POLYSCENE_DATA", ""), Path(loading.__file__).parents[1].parent / "shared" / "data")
    return next((Path(place) for place in places if place and (Path(place) / "tiny_imagenet40.tar").is_file()), None)


@pytest.mark.skipif(photographs() is None, reason="tiny_imagenet40.tar is not at hand (POLYSCENE_DATA)")
def test_real_photographs(tmp_path):
    import tarfile

    with tarfile.open(photographs() / "tiny_imagenet40.tar") as archive:
        some = [member for i, member in enumerate(archive.getmembers()) if i % 40 == 3 and "/train/" in member.name]
        archive.extractall(tmp_path, members=some, filter="data")
    source = open_source("imagenet", tmp_path / "tiny_imagenet40")
    assert len(source.class_names) == 40
    batch = batches_of(source, end=2, batch_size=64, workers=1)[1]
    assert batch.unreadable == []
    assert {tuple(size) for size in batch.sizes.tolist()} == {(64, 64)}
    assert all(image.float().std() > 3 for image in batch.images())
