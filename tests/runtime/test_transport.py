"""Items that go from process to process in one block of memory."""

import pickle

import numpy as np
import torch

from polyscene.runtime import transport
from polyscene.runtime.transport import Parcel
from polyscene.runtime.worker_loader import WorkerLoader


def item(number=0):
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (2, 3, 5, 7), generator=generator, dtype=torch.uint8)
    return {
        "images": images.contiguous(memory_format=torch.channels_last),
        "values": [torch.randn(2, 1, 5, 7, generator=generator), torch.arange(3), torch.zeros(0, 4)],
        "valid": torch.tensor([True, False]),
        "strided": torch.arange(12).view(3, 4)[:, ::2],
        "numbers": np.arange(4.0),
        "name": f"image {number}",
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert one["name"] == other["name"]
    assert one["numbers"].tolist() == other["numbers"].tolist()
    for a, b in zip(
        [one["images"], one["valid"], one["strided"], *one["values"]],
        [other["images"], other["valid"], other["strided"], *other["values"]],
        strict=True,
    ):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert one["images"].stride() == other["images"].stride()


def test_a_parcel_opens_as_what_was_put_in():
    opened = pickle.loads(pickle.dumps(Parcel(item())))
    assert_same(opened, item())
    opened["images"].add_(1)  # writable, without a warning
    start = opened["images"].untyped_storage().data_ptr()
    assert opened["values"][0].untyped_storage().data_ptr() > start, "copied out of the block"


def test_workers_send_items_with_and_without_room_in_shared_memory(monkeypatch):
    for fits in (True, False):
        monkeypatch.setattr(transport, "fits_shared_memory", lambda size, fits=fits: fits)
        found = list(WorkerLoader(item, start=2, end=6, workers=2, pack=True))
        for number, one in zip(range(2, 6), found, strict=True):
            assert_same(one, item(number))


def test_small_shared_memory_is_noticed(monkeypatch):
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(transport.shutil, "disk_usage", lambda path: usage)
    assert transport.fits_shared_memory(31 << 20)
    assert not transport.fits_shared_memory(32 << 20)
