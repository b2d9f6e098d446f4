"""Find the image files below a folder: fast, in an order that no file system decides, and without endless loops."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from polyscene.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")

_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
_SKIPPED_FOLDERS = frozenset((b"__MACOSX", b"@eaDir"))  # thumbnails and metadata of macOS archives and Synology disks


@dataclass(frozen=True, eq=False)
class PathTable:
    """Millions of file names in two buffers instead of millions of Python objects.

    Worker processes share such buffers with their parent; a list of strings they would copy, string by string, merely
    by counting references.

    Attributes:
        blob: all names, one after another, as the file system's bytes.
        ends: (N,) int64, where each name ends in ``blob``.
    """

    blob: bytes
    ends: np.ndarray

    @classmethod
    def from_names(cls, names: Sequence[bytes]) -> PathTable:
        """Pack names; their order is kept."""
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.blob[start : int(self.ends[index])])


@dataclass(frozen=True)
class Scan:
    """What a walk through folders found.

    Attributes:
        names: image files relative to the root, with "/", sorted by their bytes.
        folders: every folder that was read, relative to the root, and its modification time in nanoseconds. A file
            that is added, removed or renamed changes the time of its folder.
        other_files: how many files were passed over because their suffix is not an image's.
    """

    names: list[bytes]
    folders: dict[bytes, int]
    other_files: int


def scan_images(root: str, starts: Iterable[str] = ("",)) -> Scan:
    """Collect the image files below some folders of a tree.

    Hidden files and folders, ``__MACOSX`` and files without an image suffix are passed over. Links are followed; a
    folder is read once, under its real name if that is in the tree, so that loops end. A link to nothing counts as an
    image: whoever decodes it reports it.

    Args:
        root: folder that the names are relative to.
        starts: folders below the root, relative to it.

    Raises:
        UserError: a folder cannot be read.
    """
    base = os.fsencode(root)
    names: list[bytes] = []
    folders: dict[bytes, int] = {}
    seen: set[tuple[int, int]] = set()
    pending = [os.fsencode(start) for start in starts]
    links: list[bytes] = []
    others = 0
    while pending or links:
        if not pending:
            # Links only when no real folder is left: otherwise chance decides under which name files are found.
            links.sort(reverse=True)
            pending.append(links.pop())
        folder = pending.pop()
        path = os.path.join(base, folder) if folder else base
        try:
            status = os.stat(path)  # before reading: a change meanwhile then shows
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[folder] = status.st_mtime_ns
            with os.scandir(path) as entries:
                others += _sort_entries(entries, folder + b"/" if folder else b"", names, pending, links)
        except OSError as error:
            raise UserError(
                f"cannot read folder '{os.fsdecode(path)}': {error.strerror}; give yourself access or leave it out"
            ) from error
    return Scan(sorted(names), folders, others)


def _sort_entries(
    entries: Iterable[os.DirEntry[bytes]],
    prefix: bytes,
    names: list[bytes],
    pending: list[bytes],
    links: list[bytes],
) -> int:
    """Append images, folders and linked folders to their lists; count the other files."""
    others = 0
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            continue
        link = entry.is_symlink()
        if entry.is_dir():
            if name not in _SKIPPED_FOLDERS:
                (links if link else pending).append(prefix + name)
        elif name[name.rfind(b".") :].lower() not in _SUFFIXES:
            others += 1
        elif entry.is_file() or (link and not os.path.exists(entry.path)):  # not a pipe or a device
            names.append(prefix + name)
    return others
