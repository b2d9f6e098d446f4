"""Decode all images of a run once, reduce the large ones, and write them into a pack."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from polyscene.runtime.errors import UserError
from polyscene.runtime.images import UnreadableImage, read_image
from polyscene.runtime.worker_loader import WorkerLoader

from .packed_cache import FORMAT, HEAD_BYTES, PackedRun, write_pack
from .sources import ImageSource

RUN = 32
"""Images that a worker sends at a time."""

_SAMPLE = 256
_THREADS = 16  # that ask a file system about files: on a network each waits for its answer
# What says something about the file rather than about the moment at which it was asked for.
_LASTING = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def source_identity(source: ImageSource, side: int) -> str:
    """Hash of all that decides a pack's pixels: names, sizes and modification times of the files, and the stored side.

    Where the files are plays no part, so that a copy of a data set that keeps its times can use the same pack. A file
    that is absent is told from one that is there.
    """
    digest = hashlib.blake2b(json.dumps([FORMAT, side, len(source)]).encode(), digest_size=16)
    digest.update(source.paths.blob)
    digest.update(source.paths.ends.tobytes())
    digest.update(_file_states(source).tobytes())
    return digest.hexdigest()


def expected_bytes(source: ImageSource, side: int) -> int:
    """About how large a pack will be, from the headers of some of the images."""
    chosen = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64)).tolist()
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_header_size, (source.path(index) for index in chosen)))
    areas = [height * width for height, width in (stored_size(*size, side) for size in sizes if size)]
    return HEAD_BYTES + int(3 * len(source) * np.mean(areas)) if areas else HEAD_BYTES


def stored_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width at which an image is stored: its short side is at most ``side``, its shape is kept."""
    short = min(height, width)
    if short <= side:
        return height, width
    return (2 * height * side + short) // (2 * short), (2 * width * side + short) // (2 * short)


def reduce_image(image: Tensor, side: int) -> Tensor:
    """An image (3, H, W) uint8 at its `stored_size`: antialiased as PIL's bilinear filter; small ones as they are."""
    size = stored_size(*image.shape[1:], side)
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def pack_source(
    file: IO[bytes],
    source: ImageSource,
    identity: str,
    side: int,
    *,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    """Write the pack of a source.

    Args:
        file: an empty file, open for writing.
        source: the images.
        identity: `source_identity` before any of them is read.
        side: largest short side, pixels.
        workers: processes that decode; 0 decodes in this process.
        progress: called with the number of images done.

    Raises:
        OSError: no room.
        UserError: the file system did not deliver an image, or a worker died.
    """
    runs = WorkerLoader(_Packer(source, side), start=0, end=-(-len(source) // RUN), workers=workers, pack=True)

    def counted() -> Iterator[PackedRun]:
        done = 0
        with closing(iter(runs)) as iterator:  # no worker outlives a full disk
            for run in iterator:
                yield run
                done += len(run.sizes)
                progress(done)

    with closing(counted()) as found:
        write_pack(file, found, identity)


class _Packer:
    """Makes the n-th run of images, in a worker."""

    def __init__(self, source: ImageSource, side: int):
        self.source, self.side = source, side

    def __call__(self, number: int) -> PackedRun:
        indices = range(number * RUN, min((number + 1) * RUN, len(self.source)))
        images, sizes, reasons = [], [], []
        for index in indices:
            pixels, reason = self._read(index)
            images.append(pixels.reshape(-1))
            sizes.append(pixels.shape[:2])
            reasons.append(reason)
        return PackedRun(
            pixels=np.concatenate(images),
            sizes=np.array(sizes, dtype=np.int64),
            checksums=np.array([zlib.crc32(image) for image in images], dtype=np.uint32),
            reasons=reasons,
        )

    def _read(self, index: int) -> tuple[np.ndarray, str]:
        """(h, w, 3) uint8 and an empty text, or no pixels and the reason."""
        try:
            image = reduce_image(read_image(self.source.path(index)), self.side)
        except UnreadableImage as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno not in _LASTING:
                raise UserError(
                    f"{error}; images that a disk does not deliver are not packed: check the disk and start again"
                ) from error
            return np.zeros((0, 0, 3), np.uint8), error.reason
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy()), ""


def _file_states(source: ImageSource) -> np.ndarray:
    """(N, 2) int64: size and modification time in nanoseconds of each file; -1 where there is none."""

    def look(start: int) -> list[tuple[int, int]]:
        return [_file_state(os.path.join(source.root, source.name(i))) for i in range(len(source))[start : start + 512]]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(look, range(0, len(source), 512)))
    return np.array([state for part in parts for state in part], dtype=np.int64)


def _file_state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _header_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # whatever is wrong with it will be said when it is decoded
        return None
