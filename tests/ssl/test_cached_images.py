"""Whatever keeps the decoded images, the batches are the same; what does not fit is refused in one line."""

import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from loading_helpers import IMAGES, WORKERS, assert_equal, batches_of
from PIL import Image
from rich.console import Console

from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.ssl import cache_room, cached_images, packing
from polyscene.ssl.cache_room import check_room, disk_room, memory_room
from polyscene.ssl.cached_images import open_supply, plan_cache, upload
from polyscene.ssl.pack_files import PACK_NAME, pack_folder
from polyscene.ssl.packed_cache import HEAD_BYTES, ImagePack
from polyscene.ssl.packing import reduce_image
from polyscene.ssl.sources import open_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
KINDS = ("memory", "disk", "device")


@contextmanager
def supply_of(source, kind, folder=None, side=384, said=None):
    plan = plan_cache(kind, source, side=side, cache_dir=folder, workers=0, world=ALONE)
    lines = [] if said is None else said
    with open_supply(plan, ALONE, say=lines.append, console=Console(quiet=True)) as supply:
        yield supply


def same_batches(one, other):
    for batch, same in zip(one, other, strict=True):
        for image, expected in zip(batch.images(), same.images(), strict=True):
            assert torch.equal(image, expected)
            assert image.permute(1, 2, 0).is_contiguous()
        for name in ("sizes", "indices", "labels", "shown"):
            assert torch.equal(getattr(batch, name), getattr(same, name)), name
        assert torch.equal(batch.params.values, same.params.values)
        assert (batch.step, batch.epoch, batch.unreadable) == (same.step, same.epoch, same.unreadable)


@pytest.fixture
def photos(tmp_path):
    """23 images, some larger than 20 pixels, some unreadable; and the same tree with images already reduced to 20."""
    for i in range(IMAGES):
        pixels = torch.randint(0, 256, (3, 15 + i, 40 - i), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
        for name, image in (("large", pixels), ("small", reduce_image(pixels, 20))):
            path = tmp_path / name / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    for name in ("large", "small"):
        (tmp_path / name / "b" / "03.png").write_bytes(b"<html>")
        (tmp_path / name / "a" / "08.png").write_bytes(b"")
    return open_source("folder", tmp_path / "large"), open_source("folder", tmp_path / "small")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_files_that_were_reduced_before(photos, tmp_path, kind, workers):
    source, reduced = photos
    expected = batches_of(reduced, end=12)
    with supply_of(source, kind, tmp_path if kind == "disk" else None, side=20) as supply:
        same_batches(batches_of(source, end=12, workers=workers, supply=supply), expected)
        same_batches(batches_of(source, start=7, end=12, workers=workers, supply=supply), expected[7:])


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_need_not_be_reduced_are_those_of_the_files(photos, tmp_path, kind):
    source, _ = photos
    with supply_of(source, kind, tmp_path, side=384) as supply:
        same_batches(batches_of(source, end=6, supply=supply), batches_of(source, end=6))


def test_no_cache_is_the_files(photos):
    source, _ = photos
    with supply_of(source, "none") as supply:
        for batch, same in zip(batches_of(source, supply=supply), batches_of(source), strict=True):
            assert_equal(batch, same)


def test_unreadable_images_are_told(photos, tmp_path):
    source, _ = photos
    said = []
    with supply_of(source, "memory", said=said):
        pass
    assert said[0].startswith("packing 23 images")
    assert said[1] == "2 of 23 images cannot be read; others are shown in their place"


def test_a_kept_pack_serves_all_caches_and_later_runs(photos, tmp_path, monkeypatch):
    source, _ = photos
    with supply_of(source, "device", tmp_path) as supply:
        expected = batches_of(source, end=5, supply=supply)
    assert (pack_folder(tmp_path, source, 384) / PACK_NAME).exists()
    monkeypatch.setattr(packing, "read_image", None)
    for kind in KINDS:
        with supply_of(source, kind, tmp_path) as supply:
            same_batches(batches_of(source, end=5, workers=1, supply=supply), expected)


def test_a_changed_file_is_seen_at_the_next_start(photos, tmp_path):
    source, _ = photos
    with supply_of(source, "disk", tmp_path) as supply:
        batches_of(source, end=1, supply=supply)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(source.path(3))
    said = []
    with supply_of(source, "disk", tmp_path, said=said) as supply:
        same_batches(batches_of(source, end=6, supply=supply), batches_of(source, end=6))
    assert "packed again" in said[0]


def test_workers_of_the_device_cache_ship_no_pixels(photos):
    source, _ = photos
    with supply_of(source, "device") as supply:
        batches = batches_of(source, end=3, workers=1, supply=supply)
        raw = batches_of(source, end=1, workers=1, supply=type(supply)(supply.reader))[0]
    assert raw.pixels.numel() == 0
    assert len(pickle.dumps(raw)) < 3000
    assert len({batch.pixels.data_ptr() for batch in batches}) == 1, "every batch looks at the same pixels"
    assert batches[0].to("cpu").pixels.data_ptr() == batches[0].pixels.data_ptr(), "moving a batch copies none"


@pytest.mark.parametrize("kind", KINDS)
def test_what_spawned_workers_need_can_be_pickled(photos, tmp_path, kind):
    source, _ = photos
    with supply_of(source, kind, tmp_path if kind == "disk" else None) as supply:
        content = pickle.dumps(supply.reader)
        assert len(content) < 5000, "no pixels in it"
        again = type(supply)(pickle.loads(content), supply.finish)
        same_batches(batches_of(source, end=3, supply=again), batches_of(source, end=3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bit_that_flipped_on_the_disk_is_never_shown(photos, tmp_path, kind, workers):
    source, _ = photos
    with supply_of(source, "disk", tmp_path):
        pass
    path = pack_folder(tmp_path, source, 384) / PACK_NAME
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES + 2000] ^= 1
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match=r"is damaged: image \d+ .*delete this file"),
        supply_of(source, kind, tmp_path) as supply,
    ):
        batches_of(source, end=6, workers=workers, supply=supply)


def test_uploading_in_pieces(photos, tmp_path, monkeypatch):
    source, _ = photos
    with supply_of(source, "disk", tmp_path) as supply:
        pack = supply.reader.pack
        monkeypatch.setattr(cached_images, "_STAGING_BYTES", 3 * 1000)
        assert torch.equal(upload(pack, torch.device("cpu")), torch.from_numpy(pack.pixels.copy()))
    with open(tmp_path / "empty", "wb") as file:
        packing.write_pack(file, [], "x")
    assert upload(ImagePack(tmp_path / "empty", "x"), torch.device("cpu")).numel() == 0


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_processes_share_packs_and_get_their_parts(source, tmp_path, torchrun):
    done = torchrun(2, WORKERS / "cached_batches.py", source.root, tmp_path)
    names = ["memory True", "device True", "disk False", "memory False", "device False"]
    packed = ["1", "1", "1", "0", "0"]  # how often; the pack on the disk serves the last three
    assert done.stdout.splitlines() == [f"{name} {times}" for name, times in zip(names, packed)]
    whole = batches_of(source, end=7)
    for name in names:
        parts = [torch.load(tmp_path / f"{name.replace(' ', '-')}-{rank}.pt") for rank in range(2)]
        for step, batch in enumerate(whole):
            found = [*parts[0][step], *parts[1][step]]
            assert [torch.equal(a.flatten(), b) for a, b in zip(batch.images(), found, strict=True)] == [True] * 4


# Room


def test_what_does_not_fit_is_told_with_both_numbers():
    check_room(5, 5, "here", "go")
    check_room(5, None, "here", "go")
    with pytest.raises(
        UserError, match=r"need about 70\.00 GiB and 20\.50 GiB are free on cuda:0; lower it$"
    ) as caught:
        check_room(70 << 30, 41 << 29, "on cuda:0", "lower it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "kept", "room", "where", "remedy"),
    [
        ("device", False, "device_room", "on cpu", "lower data.cache_side or use data.cache=disk"),
        ("device", True, "device_room", "on cpu", "lower data.cache_side or use data.cache=disk"),
        ("device", False, "memory_room", "in memory", "lower data.cache_side or use data.cache=disk"),
        ("memory", False, "memory_room", "in memory", "lower data.cache_side or use data.cache=disk"),
        ("disk", True, "disk_room", "at '", "lower data.cache_side, choose another data.cache_dir"),
        ("memory", True, "disk_room", "at '", "lower data.cache_side, choose another data.cache_dir"),
    ],
)
def test_no_room_is_noticed_before_anything_is_decoded(photos, tmp_path, monkeypatch, kind, kept, room, where, remedy):
    source, _ = photos
    monkeypatch.setattr(packing, "read_image", None)
    monkeypatch.setattr(cached_images, room, lambda *place: 1000)
    with pytest.raises(UserError) as caught, supply_of(source, kind, tmp_path / "cache" if kept else None):
        pass
    assert f"GiB are free {where}" in str(caught.value)
    assert remedy in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_pack_that_lies_on_the_disk_needs_no_room_there(photos, tmp_path, monkeypatch):
    source, _ = photos
    with supply_of(source, "disk", tmp_path):
        pass
    monkeypatch.setattr(cached_images, "disk_room", lambda place: 0)
    with supply_of(source, "disk", tmp_path):
        pass


def test_disk_room_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert disk_room(tmp_path / "a" / "b") == pytest.approx(disk_room(tmp_path), rel=0.1)
    assert disk_room(Path("relative/folder")) > 0


@pytest.fixture
def machine(tmp_path):
    """``machine(groups)``: 8 MB are available; groups of names and (limit, anonymous, shared) bytes are nested."""

    def make(*groups):
        (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
        folder = tmp_path / "tree"
        folder.mkdir()
        for name, limit, anonymous, shared in groups:
            folder /= name
            folder.mkdir()
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.stat").write_text(f"anon {anonymous}\nfile 9999999\nshmem {shared}\n")
        (tmp_path / "cgroup").write_text(f"1:cpu:/x\n0::/{folder.relative_to(tmp_path / 'tree')}\n")
        return memory_room(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "tree")

    return make


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], 8_192_000),
        ([("system", "max", 5, 5)], 8_192_000),
        ([("system", "max", 5, 5), ("job", 1000, 100, 50)], 850),
        ([("system", 700, 100, 0), ("job", 1000, 100, 50)], 600),
        ([("job", 100, 100, 50)], 0),
        ([("job", 99_000_000, 100, 50)], 8_192_000),
    ],
)
def test_memory_room_obeys_the_limits_of_a_job(machine, groups, expected):
    assert machine(*groups) == expected


def test_memory_room_of_a_system_that_does_not_say(tmp_path):
    assert memory_room(tmp_path / "a", tmp_path / "b", tmp_path / "c") is None
    (tmp_path / "a").write_text("MemAvailable: 3 kB\n")
    assert memory_room(tmp_path / "a", tmp_path / "b", tmp_path / "c") == 3072


def test_a_gpu_keeps_a_tenth_for_the_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert cache_room.device_room(torch.device("cuda", 0)) == 900
