"""Decoding on the device, with a decoder of the host in its place: the same batches, whatever the files are like."""

import io
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from loading_helpers import batches_of
from PIL import Image

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import read_image
from polyscene.ssl.device_decoding import DeviceDecoder, Encoded, EncodedReader, decode_on_gpu
from polyscene.ssl.loading import ImageSupply
from polyscene.ssl.sources import open_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

CPU = torch.device("cpu")


def picture(seed, mode="RGB", size=(31, 22)):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.fixture
def photos(tmp_path):
    """Names say what the files are."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(12):
        picture(i, size=(30 + i, 40 - i)).save(root / f"{i:02}.jpg", progressive=i % 2 == 0)
    picture(20).save(root / "upright.jpg", exif=exif(1))
    picture(21).save(root / "turned.jpg", exif=exif(6))
    picture(22, "L").save(root / "grey.jpg")
    picture(23, "CMYK").save(root / "cmyk.jpg")
    picture(24).save(root / "unconverted.jpg", keep_rgb=True)
    picture(25).save(root / "portable.png")
    picture(26).save(root / "named_wrongly.jpg", "PNG")
    picture(27).save(root / "cut.jpg")
    content = (root / "cut.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(content[: len(content) // 2])
    (root / "empty.jpg").write_bytes(b"")
    return open_source("folder", root)


class HostDecoder:
    """Stands for the GPU: ordinary images only, as planes (the layout a GPU returns), and what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, files, device):
        self.asked.append(len(files))
        images = []
        for file in files:
            with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
                try:
                    pixels = np.array(image)
                except OSError as error:
                    raise RuntimeError("nvjpeg: bad bitstream") from error
            images.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
        return images


def supply_of(source, decoder):
    return ImageSupply(EncodedReader(source), DeviceDecoder(CPU, decoder))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_host(photos, workers):
    decoder = HostDecoder()
    found = batches_of(photos, end=10, workers=workers, supply=supply_of(photos, decoder))
    assert decoder.asked.pop(0) == 1, "tried before the run"
    assert sum(decoder.asked) > 15
    for batch, same in zip(found, batches_of(photos, end=10), strict=True):
        assert (batch.encoded, batch.starts) == (None, None)
        assert batch.unreadable == same.unreadable
        for name in ("pixels", "sizes", "indices", "shown"):
            torch.testing.assert_close(getattr(batch, name), getattr(same, name), rtol=0, atol=2)
        torch.testing.assert_close(batch.params.values, same.params.values)


def test_only_ordinary_files_are_left_to_the_device(photos):
    reader = EncodedReader(photos)
    ordinary = set()
    for index in range(len(photos)):
        if photos.name(index) in ("cut.jpg", "empty.jpg"):
            with pytest.raises(UserError):
                reader.read(index)
            continue
        image, expected = reader.read(index), read_image(photos.path(index))
        if isinstance(image, Encoded):
            ordinary.add(photos.name(index))
            assert image.data == photos.path(index).read_bytes()
            assert (image.height, image.width) == expected.shape[1:]
        else:
            assert torch.equal(image, expected)
    assert ordinary == {f"{i:02}.jpg" for i in range(12)} | {"upright.jpg"}


def test_a_missing_file_has_its_reason(photos):
    photos.path(0).unlink()
    with pytest.raises(UserError, match=r"00\.jpg': No such file or directory"):
        EncodedReader(photos).read(0)


def test_what_the_device_refuses_the_host_makes(photos):
    def refuse(files, device):
        if len(files) > 1:
            raise RuntimeError("nvjpeg: unsupported sampling\nmore")
        return HostDecoder()(files, device)

    def shrink(files, device):
        return [image[:, 1:] for image in HostDecoder()(files, device)]

    expected = batches_of(photos, end=4)
    for decoder in (refuse, shrink):
        for batch, same in zip(batches_of(photos, end=4, supply=supply_of(photos, decoder)), expected, strict=True):
            assert torch.equal(batch.pixels, same.pixels)
            assert torch.equal(batch.shown, same.shown)


@pytest.fixture
def gpu_log(monkeypatch):
    """What happens on which stream of a GPU, which stands on the host."""
    log, entered, memory = [], ["main"], torch.empty

    class Stream:
        def __init__(self, device):
            pass

        def synchronize(self):
            log.append(f"own stream done, now on {entered[-1]}")

    @contextmanager
    def enter(stream):
        entered.append("own")
        yield
        entered.pop()

    def empty(*size, device=None, **more):
        if device is not None:
            log.append(f"memory on {entered[-1]}")
        return memory(*size, **more)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch, "empty", empty)
    return lambda what: log.append(f"{what} on {entered[-1]}"), log


@pytest.mark.parametrize("fault", ["", "files", "sizes"])
def test_on_a_gpu_decoding_has_a_stream_and_memory_of_its_own_and_is_done_at_the_end(photos, gpu_log, fault):
    """The step before may still read memory of other streams, and nvJPEG writes without waiting for it."""
    note, log = gpu_log

    def decode(files, device):
        note("decoding")
        if fault == "files" and len(files) > 1:
            raise RuntimeError("bad bitstream")
        return [image[:, 1:] if fault else image for image in HostDecoder()(files, CPU)]

    decoder, done = DeviceDecoder(torch.device("cuda"), decode), "own stream done, now on main"
    assert log == ["decoding on own", done]
    (batch,) = batches_of(photos, end=1, supply=ImageSupply(EncodedReader(photos)))
    log.clear()
    decoder(batch, lambda step: note("files"))
    assert (
        log
        == {
            "": ["decoding on own", "memory on own", done],
            "files": ["decoding on own", done, "files on main"],
            "sizes": ["decoding on own", "memory on own", done, "files on main"],
        }[fault]
    )


def test_a_full_device_is_not_the_fault_of_an_image(photos):
    def full(files, device):
        if len(files) > 1:
            raise torch.OutOfMemoryError("no room")
        return HostDecoder()(files, device)

    with pytest.raises(torch.OutOfMemoryError):
        batches_of(photos, supply=supply_of(photos, full))


def test_a_device_that_cannot_decode_is_one_line():
    def missing(files, device):
        raise RuntimeError("torchvision not compiled with nvJPEG support\nstack")

    with pytest.raises(
        UserError, match=r"data\.decode=device: cpu does not decode JPEG \(.*nvJPEG support\); use"
    ) as e:
        DeviceDecoder(CPU, missing)
    assert "\n" not in str(e.value)


def test_torchvisions_decoder_takes_what_it_is_given(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = DeviceDecoder(CPU, decode_on_gpu)
    batch = batches_of(photos, end=1, supply=ImageSupply(EncodedReader(photos), decoder))[0]
    assert torch.equal(batch.pixels, batches_of(photos, end=1)[0].pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(photos):
    supply = ImageSupply(EncodedReader(photos), DeviceDecoder(torch.device("cuda")))
    for batch, same in zip(batches_of(photos, end=6, supply=supply), batches_of(photos, end=6), strict=True):
        assert batch.pixels.is_cuda
        difference = (batch.pixels.cpu().int() - same.pixels.int()).abs().float()
        assert difference.mean() < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_decoding_does_not_touch_what_a_busy_stream_still_reads(photos):
    device = torch.device("cuda")
    decoder = DeviceDecoder(device)
    (batch,) = batches_of(photos, end=1, supply=ImageSupply(EncodedReader(photos)))
    expected = decoder(batch, None).pixels.cpu()
    read = [torch.full((3, h, w), 7, dtype=torch.uint8, device=device) for h, w in batch.sizes.tolist() * 8]
    total = sum(image.numel() for image in read)
    torch.cuda._sleep(1_000_000_000)  # half a second of a step
    sums = torch.stack([image.sum() for image in read])
    del read
    pixels = decoder(batch, None).pixels
    with torch.cuda.stream(torch.cuda.Stream(device)):  # as the views are rendered
        found = pixels.cpu()
    assert int(sums.sum()) == 7 * total
    assert torch.equal(found, expected)
