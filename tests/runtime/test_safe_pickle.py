"""No file gets anything run by being read."""

import argparse
import collections
import os
import pickle
import struct
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyscene.runtime import safe_pickle
from polyscene.runtime.errors import UserError
from polyscene.runtime.weight_formats.containers import read_container
from polyscene.runtime.weights import read_weights


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    """A file that every payload of this module would create."""
    return tmp_path / "executed"


def payloads(marker):
    return {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
    }


PAYLOADS = ("system", "eval", "exec", "open")
ARRAY = np.arange(4, dtype=np.float32)


def hidden(payload):
    """The payload at different depths of what looks like weights."""
    return {
        "top": payload,
        "value": {"model": {"stem.conv1.weight": ARRAY, "x": payload}},
        "key": {"model": {"stem.conv1.weight": ARRAY}, "extra": [1, (2, payload)]},
    }


def assert_refused(path, marker, name):
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert not marker.exists()
    assert "\n" not in message
    assert str(path) in message
    assert "refused, nothing was run" in message
    assert name in message


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("place", ["top", "value", "key"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickle(tmp_path, marker, name, place, protocol):
    content = hidden(payloads(marker)[name])[place]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert_refused(tmp_path / "w.pkl", marker, name)


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("place", ["value", "key"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file(tmp_path, marker, name, place, zipped):
    content = hidden(payloads(marker)[name])[place]
    torch.save(
        {"state_dict": {"conv1.weight": torch.zeros(2)}, **content},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=zipped,
    )
    assert_refused(tmp_path / "w.pth", marker, name)


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickle_of_the_oldest_protocols_is_not_read_at_all(tmp_path, marker, protocol):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(payloads(marker)["system"], protocol=protocol))
    with pytest.raises(UserError, match=r"w\.pkl: is "):
        read_weights(tmp_path / "w.pkl")
    assert not marker.exists()


def test_the_payloads_are_live(marker):
    # Otherwise the tests above would show nothing.
    pickle.loads(pickle.dumps(payloads(marker)["system"]))
    assert marker.exists()


class TestInsideNumpyReconstruction:
    def write(self, path, body):
        path.write_bytes(b"\x80\x02" + body + b".")
        return path

    def test_object_arrays(self, tmp_path, marker):
        for number, values in enumerate(([payloads(marker)["system"]], [1, "text"], [None])):
            array = np.empty(len(values), dtype=object)
            array[:] = values
            for protocol in (2, 5):
                path = tmp_path / f"{number}-{protocol}.pkl"
                path.write_bytes(pickle.dumps({"model": {"a": array}}, protocol=protocol))
                with pytest.raises(UserError, match="refused, nothing was run"):
                    read_weights(path)
                assert not marker.exists()

    def test_payload_in_place_of_the_array_type(self, tmp_path, marker):
        evil = Call(np._core.multiarray._reconstruct, payloads(marker)["system"], (0,), b"b")
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": evil}}, protocol=3))
        assert_refused(tmp_path / "w.pkl", marker, "system")

    def test_payload_in_place_of_the_type_code(self, tmp_path, marker):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": Call(np.dtype, payloads(marker)["system"])}, protocol=3))
        assert_refused(tmp_path / "w.pkl", marker, "system")

    @pytest.mark.parametrize("code", ["O", "O8", "V8", "U4", "S9", "M8", "c8", "f4,O"])
    def test_other_than_number_types(self, tmp_path, code):
        text = code.encode()
        body = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(text)) + text + b"I00\nI01\ntR"
        with pytest.raises(UserError, match=r"refused.*numpy\.dtype"):
            read_weights(self.write(tmp_path / "w.pkl", body))

    def test_size_that_disagrees_with_the_bytes(self, tmp_path):
        data = pickle.dumps({"a": np.zeros(3, np.float32)}, protocol=2)
        assert data.count(b"K\x03\x85") == 1
        (tmp_path / "w.pkl").write_bytes(data.replace(b"K\x03\x85", b"K\x09\x85"))
        with pytest.raises(UserError, match="damaged or incomplete"):
            read_weights(tmp_path / "w.pkl")

    def test_codecs_other_than_latin1(self, tmp_path):
        (tmp_path / "w.pkl").write_bytes(b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.")
        with pytest.raises(UserError, match=r"refused.*rot13"):
            read_weights(tmp_path / "w.pkl")

    @pytest.mark.parametrize(
        "target", [b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n"]
    )
    def test_allowed_names_cannot_be_modified(self, tmp_path, target):
        # BUILD with slot state (None, {"__defaults__": (1,)}) would set an attribute on the object itself.
        body = target + b"(N}X\x0c\x00\x00\x00__defaults__(K\x01tstb"
        with pytest.raises(UserError, match=r"refused.*a change to a function"):
            read_weights(self.write(tmp_path / "w.pkl", body))
        assert safe_pickle._encode.__defaults__ == ("latin1",)

    @pytest.mark.parametrize(
        "name",
        [
            b"numpy\nload",
            b"numpy.core.multiarray\nfromfile",
            b"builtins\ngetattr",
            b"polyscene.runtime.safe_pickle\nos",
        ],
    )
    def test_neighbours_of_allowed_names(self, tmp_path, name):
        with pytest.raises(UserError, match="refused"):
            read_weights(self.write(tmp_path / "w.pkl", b"c" + name + b"\n)R"))


def test_persistent_references_are_refused(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(UserError, match=r"refused.*an object outside the file"):
        read_weights(tmp_path / "w.pkl")


def test_namespace_attributes_stay_inert(tmp_path):
    namespace = argparse.Namespace(keys=1)
    namespace.__dict__["__class__"] = "x"
    content = {"args": namespace, "w": torch.ones(2)}
    torch.save(content, tmp_path / "w.pth")
    loaded = safe_pickle.load_torch_file(tmp_path / "w.pth")
    assert loaded["args"] == {}
    assert torch.equal(loaded["w"], torch.ones(2))


def test_the_list_of_torch_is_as_before_afterwards(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    safe_pickle.load_torch_file(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "<i8", ">i4", "f2", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were(tmp_path, protocol, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, dtype=dtype, order=order)
    content = collections.OrderedDict(a=array, scalar=np.float32(1.5), none=None, text="é")
    content.extra = "an attribute"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = safe_pickle.load_array_pickle(tmp_path / "w.pkl")
    assert np.array_equal(loaded["a"].numpy(), array)
    assert loaded["a"].is_contiguous()
    assert (loaded["scalar"], loaded["none"], loaded["text"]) == (1.5, None, "é")


def test_containers_that_share_or_contain_themselves(tmp_path):
    shared = [1]
    for _ in range(200):
        shared = [shared, shared]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": shared}))
    start = time.monotonic()
    assert "a" in read_container(tmp_path / "w.pkl")
    assert time.monotonic() - start < 5
    loop = {}
    loop["loop"] = loop
    for path, write in (
        (tmp_path / "l.pkl", lambda p: p.write_bytes(pickle.dumps(loop))),
        (tmp_path / "l.pth", lambda p: torch.save(loop, p)),
    ):
        write(path)
        with pytest.raises(UserError, match="damaged or incomplete"):
            read_container(path)


def small_files():
    arrays = {"stem.conv1.weight": np.zeros((2, 2), np.float32), "n": np.float64(1)}
    return [pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol) for protocol in (2, 4, 5)]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_one_line(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(small_files())))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.pkl"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    outcome = "read"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_container(path)
        except UserError as error:
            outcome = str(error)
    assert "\n" not in outcome
