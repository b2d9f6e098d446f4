"""Read weight files written by others without ever running what is in them.

A pickle is a program: it names functions and has them called. Two readers exist, both of which know a short list
of names and refuse every other:

* torch files go through ``torch.load`` in its weights-only mode;
* plain pickles of numpy arrays (detectron2) go through :class:`_ArrayUnpickler` below.

Neither ever reaches numpy's own unpickling code: its names are bound to the inert stand-ins of this file, which
copy bytes into an array of a plain number type and do nothing else.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import UserError

_RESAVE = "if you trust it, load it with the program that wrote it and save model.state_dict() alone"
# The 10-byte integer that opens a torch file of the old, non-zip kind (torch.serialization.MAGIC_NUMBER).
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Refused(Exception):
    """A file asked for a name that is not on the list; ``str()`` of it is that name."""


class _Number:
    """Stand-in for ``numpy.dtype``: a plain number type, never one that holds Python objects."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        # Kinds b, i, u, f only: an object dtype would make numpy treat the file's bytes as pointers.
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248])", code):
            raise Refused(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise Refused(f"numpy.dtype byte order {order!r}")
        if state[2] is not None or state[3] is not None:
            raise Refused("numpy.dtype with sub-arrays or fields")
        self.dtype = self.dtype.newbyteorder(order)


def _plain_array(data: Any, number: Any, shape: Any, fortran: bool) -> np.ndarray:
    if not isinstance(number, _Number):
        raise Refused("an array without a number type")
    if isinstance(data, str):  # a Python 2 string, read as latin1
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise Refused("an array of Python objects")
    shape = tuple(int(size) for size in shape)
    if min(shape, default=0) < 0 or math.prod(shape) * number.dtype.itemsize != len(data):
        raise pickle.UnpicklingError("an array whose size does not agree with its bytes")
    return np.frombuffer(data, dtype=number.dtype).reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stand-in for an array under construction; ``value`` is the array once its state has been read."""

    value: np.ndarray | None = None

    def __init__(self, *_args: Any) -> None:
        """Take and ignore what ``_reconstruct`` is called with: a type, an empty shape and a type code."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, number, fortran, data = state
        self.value = _plain_array(data, number, shape, bool(fortran))


class _NdarrayName:
    """Stand-in for the name ``numpy.ndarray``, which array pickles mention but need not call."""

    def __init__(self, *_args: Any) -> None:
        raise Refused("numpy.ndarray called directly")


def _frombuffer(data: Any, number: Any, shape: Any, order: Any, *_axes: Any) -> np.ndarray:
    return _plain_array(data, number, shape, order == "F")


def _scalar(number: Any, data: Any = b"") -> int | float | bool:
    return _plain_array(data, number, (), False).item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # Bytes inside a pickle of protocol 2; other codecs (zlib, hex, ...) are not needed and not offered.
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class _Inert(dict):
    """Stand-in for ``collections.OrderedDict`` and ``argparse.Namespace``: a dictionary that ignores attributes.

    argparse.Namespace itself would be harmless (it has no ``__setstate__``; the state would only fill the
    ``__dict__`` of a plain object), but nothing here wants its contents, so not even that happens.
    """

    def __setstate__(self, state: Any) -> None:
        """Ignore attributes attached to the object (for example ``_metadata`` of a state dict)."""


_NUMPY_NAMES: dict[str, Any] = {
    "numpy.ndarray": _NdarrayName,
    "numpy.dtype": _Number,
    # numpy 2 renamed numpy.core; files of both ages are about.
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
}
_PICKLE_NAMES: dict[str, Any] = {**_NUMPY_NAMES, "collections.OrderedDict": _Inert, "_codecs.encode": _encode}
# What the checkpoints of published training scripts hold beside tensors: their arguments and numpy numbers.
_TORCH_NAMES: dict[str, Any] = {**_NUMPY_NAMES, "argparse.Namespace": _Inert}


class _Callable:
    """What a pickle gets for an allowed name: it can be called, and nothing about it can be changed.

    A pickle may also "build" a function or class, which would set attributes on this module's own objects.
    """

    __slots__ = ("_stand_in",)

    def __init__(self, stand_in: Any) -> None:
        self._stand_in = stand_in

    def __call__(self, *args: Any) -> Any:
        return self._stand_in(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a change to a function")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and numpy arrays; every other name in the file ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _Callable(_PICKLE_NAMES[f"{module}.{name}"])
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("an object outside the file")


def is_torch_legacy(head: bytes) -> bool:
    """Whether a file that starts with these bytes (16 at least) is a torch file of the old, non-zip kind."""
    return head[:1] == b"\x80" and _TORCH_MAGIC in head[:32]


def load_array_pickle(path: Path) -> Any:
    """Read a plain pickle made of containers, numbers, strings and numpy arrays.

    Returns:
        The object; arrays as tensors.

    Raises:
        UserError: the file names anything else (nothing of it has been called), or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _finished(_ArrayUnpickler(file, encoding="latin1").load(), {})
    except Refused as refusal:
        raise refused(path, str(refusal)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise damaged(path, error) from error


def load_torch_file(path: Path) -> Any:
    """Read a file written by ``torch.save``, zip or older, with every tensor on the CPU.

    Tensors of a zip file are mapped, not read: a checkpoint with large queues costs only what is used of it.

    Raises:
        UserError: the file names code outside torch's weights-only list (none of it has been called), is damaged,
            or is a TorchScript program.
    """
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _TORCH_NAMES.items()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
        return _finished(loaded, {})
    except UserError:
        raise
    except Refused as refusal:
        raise refused(path, str(refusal)) from None
    except Exception as error:
        named = re.search(r"(?:GLOBAL|unrecognized function|allowlisted via .* but got) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise refused(path, named.group(1)) from None
        raise damaged(path, error) from error


def _can_be_mapped(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise UserError(f"{path}: is a TorchScript program, not weights; {_RESAVE}")
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise UserError(
            f"{path}: is a zip archive, but not one that torch.save wrote; unpack it and give the file inside"
        )
    # Mapping reads the bytes as they lie in the file, so an archive that was compressed again must be read instead.
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


_UNDER_WAY = object()


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Replace stand-ins by tensors and every kind of dictionary by `dict`, each object once.

    `done` (id -> result) keeps a small file whose containers contain each other many times from growing, and ends
    the reading of one that contains itself.
    """
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C", copy=True))
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, Mapping) and type(value) not in (list, tuple):
        return value
    if done.get(id(value)) is _UNDER_WAY:
        raise pickle.UnpicklingError("a container that contains itself")
    if id(value) not in done:
        done[id(value)] = _UNDER_WAY
        if isinstance(value, Mapping):
            done[id(value)] = {key: _finished(item, done) for key, item in dict.items(value)}
        else:
            done[id(value)] = type(value)(_finished(item, done) for item in value)
    return done[id(value)]


def refused(path: Path, name: str) -> UserError:
    """The error for a file that asks for code."""
    name = " ".join(name.split())[:120]
    return UserError(
        f"{path}: refused, nothing was run: the file asks for {name!r}, which weights never need; {_RESAVE}"
    )


def damaged(path: Path, cause: Exception) -> UserError:
    """The error for a file that starts like weights and does not read to its end."""
    first = " ".join(str(cause).split())[:120] or type(cause).__name__
    return UserError(f"{path}: is damaged or incomplete ({first}); copy or download it again")
