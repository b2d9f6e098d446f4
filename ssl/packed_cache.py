"""The packed cache's file: all images of a run decoded, one after another, with a table of where each begins.

    4096 bytes   head: mark, JSON, zeros, CRC-32 of all that
    P bytes      pixels: each image (h, w, 3) uint8 RGB, without gaps
    T bytes      table: ends (N,) int64, sizes (N, 2) int64, CRC-32 (N,) uint32, and the reasons of unreadable images

Numbers are little-endian. Nothing in it is pickled. An image that cannot be read has no pixels, but a reason.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from polyscene.runtime.errors import UserError

HEAD_BYTES = 4096
FORMAT = 1

_MARK = b"PolyScene packed images\n"


class BadPack(Exception):
    """A file is not the pack that was asked for; the message says why."""


@dataclass
class PackedRun:
    """Some consecutive images.

    Attributes:
        pixels: (sum of h*w*3,) uint8.
        sizes: (n, 2) int64, height and width; 0 and 0 of an unreadable image.
        checksums: (n,) uint32, CRC-32 of each image's pixels.
        reasons: n texts; empty for an image that could be read.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    reasons: list[str]


class ImagePack:
    """A pack that is mapped into memory; processes that map the same file share one copy.

    Args:
        path: the file.
        identity: of the images it must have been made from, see `packing.source_identity`.
        verify: compare each image with its checksum when this process first reads it: about 0.15 ms.

    Attributes:
        sizes: (N, 2) int64, height and width.
        starts: (N,) int64, where each image begins in ``pixels``.
        reasons: number of an unreadable image -> what is wrong with it.
        pixels: (P,) uint8, read-only.

    Raises:
        BadPack: another format, made from other images, truncated, or damaged.
        OSError: the file is absent or cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], identity: str, *, verify: bool = True):
        self.path, self.identity, self.verify = os.fspath(path), identity, verify
        with open(self.path, "rb") as file:
            head = _read_head(file)
            total = HEAD_BYTES + head["pixel_bytes"] + head["table_bytes"]
            if head["identity"] != identity:
                raise BadPack("it was made from other images, or from other versions of them")
            found = os.fstat(file.fileno()).st_size
            if found != total:
                raise BadPack(f"it has {found} bytes instead of {total}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = self._map[HEAD_BYTES + head["pixel_bytes"] :]
        if zlib.crc32(table) != head["table_crc"]:
            raise BadPack("its table does not match its checksum")
        count = head["images"]
        whole = np.frombuffer(self._map, dtype=np.uint8)
        self.pixels = whole[HEAD_BYTES : HEAD_BYTES + head["pixel_bytes"]]
        ends, sizes, checksums = (
            np.frombuffer(table, dtype, count=width * count, offset=place * count)
            for dtype, width, place in (("<i8", 1, 0), ("<i8", 2, 8), ("<u4", 1, 24))
        )
        self.sizes, self._checksums = sizes.reshape(count, 2), checksums
        self.starts = np.concatenate([np.zeros(1, np.int64), ends])[:count]
        self.reasons = {int(number): reason for number, reason in json.loads(table[28 * count :]).items()}
        self._checked = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_pack, (self.path, self.identity, self.verify)

    def extent(self, index: int) -> tuple[int, int]:
        """Where an image begins and ends in ``pixels``."""
        start = int(self.starts[index])
        return start, start + int(self.sizes[index].prod()) * 3

    def image(self, index: int) -> np.ndarray:
        """Pixels of an image, (h*w*3,) uint8, read-only; nothing is copied.

        Raises:
            UserError: they do not match their checksum.
        """
        start, end = self.extent(index)
        pixels = self.pixels[start:end]
        if self.verify and not self._checked[index]:
            if zlib.crc32(pixels) != self._checksums[index]:
                raise UserError(
                    f"'{self.path}' is damaged: image {index} does not match its checksum; delete this file, and the "
                    "next start packs the images again"
                )
            self._checked[index] = True
        return pixels

    def prefetch(self, extents: Iterable[tuple[int, int]]) -> None:
        """Have the system read these parts of ``pixels`` all at once rather than page by page as they are touched."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for start, end in extents:
            first = (HEAD_BYTES + start) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, HEAD_BYTES + end - first)


def write_pack(file: IO[bytes], runs: Iterable[PackedRun], identity: str) -> None:
    """Write a pack into an empty file; its head comes last, so that a half-written file is no pack.

    Args:
        file: open for writing; seekable.
        runs: all images, in order.
        identity: of what they were made from.

    Raises:
        OSError: no room.
    """
    file.write(bytes(HEAD_BYTES))
    sizes, checksums = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.uint32)]
    reasons: dict[int, str] = {}
    count = 0
    for run in runs:
        file.write(memoryview(run.pixels))
        sizes.append(run.sizes)
        checksums.append(run.checksums)
        reasons |= {count + i: reason for i, reason in enumerate(run.reasons) if reason}
        count += len(run.sizes)
    table_sizes = np.concatenate(sizes)
    ends = np.cumsum(table_sizes.prod(axis=1) * 3, dtype=np.int64)
    parts = (ends.astype("<i8"), table_sizes.astype("<i8"), np.concatenate(checksums).astype("<u4"))
    table = b"".join(part.tobytes() for part in parts) + json.dumps(reasons).encode()
    file.write(table)
    head = {
        "format": FORMAT,
        "identity": identity,
        "images": count,
        "pixel_bytes": int(ends[-1]) if count else 0,
        "table_bytes": len(table),
        "table_crc": zlib.crc32(table),
    }
    text = (_MARK + json.dumps(head).encode()).ljust(HEAD_BYTES - 4, b"\0")
    file.seek(0)
    file.write(text + zlib.crc32(text).to_bytes(4, "little"))


def _read_head(file: IO[bytes]) -> dict[str, Any]:
    block = file.read(HEAD_BYTES)
    text, checksum = block[:-4], block[-4:]
    if len(block) < HEAD_BYTES or not text.startswith(_MARK):
        raise BadPack("it is not a whole file of packed images")
    if zlib.crc32(text) != int.from_bytes(checksum, "little"):
        raise BadPack("its head does not match its checksum")
    head = json.loads(text[len(_MARK) :].rstrip(b"\0"))
    if head["format"] != FORMAT:
        raise BadPack(f"it has format {head['format']} instead of {FORMAT}")
    return head


def _open_pack(path: str, identity: str, verify: bool) -> ImagePack:
    return ImagePack(path, identity, verify=verify)
