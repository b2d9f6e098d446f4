"""JPEG files decoded in batches on the GPU: workers ship the files' bytes, and decode only what is not ordinary."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import MAX_PIXELS, decode_image, read_file
from polyscene.runtime.transport import shared_buffer

from .batches import ImageBatch
from .image_readers import Gathered, ImageReader
from .sources import ImageSource

_EXIF_ORIENTATION = 0x0112

Decode = Callable[[list[Tensor], torch.device], list[Tensor]]
"""Contents of JPEG files, (n,) uint8 each, to RGB images (3, H, W) uint8 on a device; RuntimeError if it cannot."""


def decode_on_gpu(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEG files with nvJPEG; its pixels differ from libjpeg's by rounding."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)


class Encoded(NamedTuple):
    """A JPEG file and the size of the image in it."""

    data: bytes
    height: int
    width: int


class EncodedReader(ImageReader):
    """Reads files; decodes those that the device had better not see."""

    def __init__(self, source: ImageSource):
        self.source = source

    def read(self, index: int) -> Encoded | Tensor:
        """The file's content, or the image (3, H, W) uint8 where the host had to decode it."""
        path = self.source.path(index)
        data = read_file(path)
        size = _ordinary_size(data)
        return decode_image(data, str(path)) if size is None else Encoded(data, *size)

    def gather(self, images: list[Encoded | Tensor]) -> Gathered:
        """Files and pixels in one buffer."""
        parts = [_bytes_of(image) for image in images]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        pixels = shared_buffer(int(lengths.sum()))
        np.concatenate(parts, out=pixels.numpy())
        sizes = [(i.height, i.width) if isinstance(i, Encoded) else tuple(i.shape[1:]) for i in images]
        encoded = [len(image.data) if isinstance(image, Encoded) else 0 for image in images]
        return Gathered(
            pixels,
            torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            torch.from_numpy(np.cumsum(lengths) - lengths),
            torch.tensor(encoded, dtype=torch.int64),
        )


class DeviceDecoder:
    """Turns a batch of files into a batch of images on a device.

    A batch with a file that the device refuses is made from the files by the host alone, which also replaces images
    that are damaged.

    Args:
        device: where the pixels are wanted.
        decode: does it.

    Raises:
        UserError: the device does not decode.
    """

    def __init__(self, device: torch.device, decode: Decode = decode_on_gpu):
        self.device, self.decode = device, decode
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            with self._apart():
                decode([_example()], device)
        except (RuntimeError, ImportError) as error:
            raise UserError(
                f"data.decode=device: {device} does not decode JPEG ({str(error).strip().splitlines()[0]}); "
                "use data.decode=host"
            ) from error

    def __call__(self, batch: ImageBatch, from_files: Callable[[int], ImageBatch]) -> ImageBatch:
        """The batch with decoded pixels on the device, ready for any stream; on the host if the host had to make it."""
        with self._apart():
            decoded = self._decoded(batch)
        return from_files(batch.step) if decoded is None else decoded

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """A stream of its own for decoding, with memory of its own; at the end everything is done.

        nvJPEG writes at once into the memory that it is given, while on another stream the step before may still read
        what was there. And whoever uses the pixels has a stream that waits neither for this one nor for the step's.
        """
        if self._stream is None:
            yield
            return
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._stream.synchronize()

    def _decoded(self, batch: ImageBatch) -> ImageBatch | None:
        """None if the device refuses a file."""
        starts, lengths, sizes = batch.starts.tolist(), batch.encoded.tolist(), batch.sizes.tolist()
        files = [batch.pixels[start : start + length] for start, length in zip(starts, lengths) if length]
        try:
            decoded = iter(self.decode(files, self.device) if files else [])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None
        pixels = torch.empty(3 * sum(h * w for h, w in sizes), dtype=torch.uint8, device=self.device)
        finished = replace(batch, pixels=pixels, starts=None, encoded=None)
        for place, start, length, (height, width) in zip(finished.images(), starts, lengths, sizes):
            if length:
                image = next(decoded)
            else:
                image = batch.pixels[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)
            if image.shape != place.shape:  # another size than the header said
                return None
            place.copy_(image, non_blocking=True)
        return finished


def _ordinary_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG image that every decoder shows alike; None for anything else.

    Left to the host: other formats, grey, CMYK and unconverted RGB, more than 8 bits, EXIF rotation, pictures within
    pictures, files without an end, and what claims more than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            ordinary = (
                image.format == "JPEG"
                and image.mode == "RGB"
                and image.info.get("adobe_transform", 1) == 1
                and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
                and image.width * image.height <= MAX_PIXELS
                and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
            )
            return (image.height, image.width) if ordinary else None
    except Exception:  # `decode_image` says what is wrong with it
        return None


def _bytes_of(image: Encoded | Tensor) -> np.ndarray:
    if isinstance(image, Encoded):
        return np.frombuffer(image.data, dtype=np.uint8)
    return image.permute(1, 2, 0).reshape(-1).numpy()


def _example() -> Tensor:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
